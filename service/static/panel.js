/** The panel beside the image: what was found, the classes, and what answered. */

import { $, make, shape } from "./dom.js";
import { summary } from "./table.js";
import { count, day, milliseconds, number, percent } from "./words.js";

const BINS = 30;
const CERTAINTY = {
  none: "",
  about: "about",
  counting: "about",
  exact: "exact",
};
const STAGES = { queue: "waiting", decode: "reading", infer: "computing", encode: "writing" };

/** A class's name in a sentence; labels without names have numbers. */
export const className = ({ name }) => (/^\d+$/.test(name) ? `class ${name}` : name);

/**
 * Number of objects, their areas, their share of the image.
 * @param {{areas: ArrayLike<number>, unit: string, share: number}|null} found null: nothing yet
 * @param {keyof CERTAINTY} certainty
 */
export function showFound(found, certainty = "none") {
  $("result").dataset.state = certainty;
  $("certainty").dataset.certainty = certainty;
  $("certainty").textContent = CERTAINTY[certainty];
  const isExact = certainty === "exact";
  $("certainty").title = isExact ? "Counted by the service, as in the table that you save" : "Counted on the screen";
  if (!found) {
    for (const id of ["count", "median", "range", "share"]) $(id).textContent = "–";
    $("count-unit").textContent = "objects";
    $("histogram").replaceChildren();
    $("histogram-low").textContent = $("histogram-high").textContent = "";
    return;
  }
  const { n, median, least, most } = summary(found.areas);
  const area = (value) => `${number(value)} ${found.unit}`;
  $("count").textContent = number(n);
  $("count-unit").textContent = n === 1 ? "object" : "objects";
  $("median").textContent = n ? area(median) : "–";
  $("range").textContent = n ? `${number(least)} – ${area(most)}` : "–";
  $("share").textContent = percent(found.share);
  drawHistogram(found.areas, area);
}

/** For the screen reader: "412 objects, median area 153 px, 23.4 % of the image". */
export function sentence(found) {
  const { n, median } = summary(found.areas);
  const areas = n ? `, median area ${number(median)} ${found.unit}` : "";
  return `${count(n, "object")}${areas}, ${percent(found.share)} of the image`;
}

/** How many objects are how large; areas on a logarithmic axis, since they spread over decades. */
function drawHistogram(areas, words) {
  const bars = new Array(BINS).fill(0);
  const [least, most] = [areas[0], areas[areas.length - 1]];
  const span = Math.log(most / least) || 1;
  for (const area of areas) bars[Math.min(BINS - 1, Math.floor((BINS * Math.log(area / least)) / span))] += 1;
  const tallest = Math.max(...bars, 1);
  const width = 240 / BINS;
  const path = bars.map((n, i) => {
    const height = n ? Math.max(1.5, (38 * n) / tallest) : 0;
    return `M${(i * width + 0.75).toFixed(2)} 40v${-height.toFixed(2)}h${width - 1.5}V40z`;
  });
  $("histogram").replaceChildren(shape("path", { d: path.join("") }));
  const label = areas.length ? `Areas from ${words(least)} to ${words(most)}` : "No areas";
  $("histogram").setAttribute("aria-label", label);
  $("histogram-low").textContent = areas.length > 1 ? words(least) : "";
  $("histogram-high").textContent = areas.length > 1 ? words(most) : "";
}

/** What is unusual about the image, from X-Input-Warning. */
export function showWarning(text) {
  $("warning").hidden = !text;
  const said = text && `${text[0].toUpperCase()}${text.slice(1)}`;
  $("warning-text").textContent = text && `${said}. The result may be worse than usual.`;
}

/**
 * The list of classes.
 * @param {{value: number, name: string, colour: number[]}[]} classes
 * @param {Set<number>} hidden values
 * @param {(value: number, isVisible: boolean) => void} onChange
 */
export function showClasses(classes, hidden, onChange) {
  $("classes").replaceChildren(
    ...classes.map((each) => {
      const box = make("input", { type: "checkbox", checked: !hidden.has(each.value), value: each.value });
      box.addEventListener("change", () => onChange(each.value, box.checked));
      const swatch = make("i");
      swatch.style.background = `rgb(${each.colour.join(" ")})`;
      const found = make("output", { className: "found" });
      found.dataset.class = each.name;
      return make("li", {}, make("label", {}, box, swatch, make("span", {}, className(each)), found));
    }),
  );
}

/** The value under the pointer in words, from the viewer's event. */
export function under({ x, y, probability, value }, model) {
  const where = `x ${x}, y ${y}`;
  if (!model || (probability === null && value === null)) return where;
  const sure = probability === null ? "" : `${Math.round(100 * probability)} %`;
  if (model.binary) return `${where}: ${sure} ${className(model.classes.at(-1))}`;
  const found = model.classes.find((each) => each.value === value);
  return `${where}: ${found ? className(found) : value}${sure && `, ${sure} sure`}`;
}

/** Numbers of objects beside the names. @param {(name: string, value: number) => number|undefined} countOf */
export function showClassCounts(countOf) {
  for (const row of $("classes").children) {
    const found = row.querySelector("output");
    const n = countOf(found.dataset.class, Number(row.querySelector("input").value));
    found.textContent = n === undefined ? "" : count(n, "object");
  }
}

/** What the model is and how long it took. */
export function showAnswered(model, timing, { refused, failure }) {
  $("answered").hidden = !model;
  if (!model) return;
  const names = model.classes.map(className);
  const shown = names.length > 6 ? [...names.slice(0, 5), `${names.length - 5} more`] : names;
  const facts = [
    ["Trained", day(model.trained_at) ?? "date not known"],
    ["Learned from", model.n_images === null ? "not known" : count(model.n_images, "annotated image")],
    ["Score", model.score === null ? "not known" : model.score.toFixed(2)],
    ["Classes", shown.join(", ")],
    ["Computed on", device(model)],
    ["Model", model.id],
  ];
  if (refused) facts.push(["Newer file", `not used: ${refused}`]);
  if (failure) facts.push(["Last failure", failure]);
  $("model-facts").replaceChildren(
    ...facts.map(([term, text]) => make("div", {}, make("dt", {}, term), make("dd", {}, text))),
  );
  const share = `${Math.round(100 * model.score)} %`;
  const of = "(Dice, mean of all classes, background included)";
  const words = `Checked on annotated images, its pixels and a person’s overlap by ${share} ${of}.`;
  $("model-words").textContent = model.score === null ? "" : words;
  showTiming(timing);
}

function device({ device, deviceName }) {
  const kind = device.startsWith("cuda") ? "GPU" : device === "cpu" ? "CPU" : device;
  return deviceName && deviceName !== device ? `${kind}, ${deviceName.replace(/\((R|TM)\)/g, "")}` : kind;
}

/** A Server-Timing header as a bar of its stages. */
function showTiming(header) {
  const stages = [...header.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, ms]) => ({ name, ms: Number(ms) }));
  const total = stages.reduce((sum, { ms }) => sum + ms, 0);
  $("timing").hidden = !stages.length;
  $("timing-total").textContent = milliseconds(total);
  $("timing-bar").replaceChildren(
    ...stages.map(({ name, ms }) => {
      const part = make("i");
      part.dataset.stage = name;
      part.style.flexGrow = ms / total;
      return part;
    }),
  );
  const words = stages.map(({ name, ms }) => `${STAGES[name] ?? name} ${milliseconds(ms)}`).join(", ");
  $("timing-bar").setAttribute("aria-label", words);
  $("timing-words").textContent = words;
}
