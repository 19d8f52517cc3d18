/** The page: joins files, service, viewer and controls. */

import { Api, Problem, Unreachable } from "./api.js";
import { askForKey, installZip } from "./dialogs.js";
import { Files } from "./files.js";
import { install as installInput } from "./input.js";
import { install as installKeys } from "./keys.js";
import * as panel from "./panel.js";
import { decodePng } from "./png.js";
import { answer, download, KINDS, ModelChanged } from "./save.js";
import { Status } from "./status.js";
import { Strip } from "./strip.js";
import { measure } from "./table.js";
import { brief, showTraining } from "./training.js";
import { Viewer } from "./viewer.js";
import { count, day, number } from "./words.js";

const REST_MS = 500; // of the slider, before the service counts exactly
const TURN_MS = 150; // of the page slider, before a page is fetched
const ZOOM = 1.5;
const STEP = 40; // CSS pixels that an arrow key moves the image

const $ = (id) => document.getElementById(id);
const api = new Api(askForKey, () => {
  files.retryWithKey();
  status.look();
  if (files.current?.pictureError?.status === 401) draw();
});
const files = new Files(api);
const status = new Status(api);
const viewer = new Viewer($("canvas"));

let threshold = null; // as set by hand; null: the model's own
let drawing = new AbortController(); // of the image that is shown
let counting = new AbortController(); // of the exact number
let drawn = null; // {item, page, width, height} of what the canvas shows
let isCounting = false; // whether it is on its way
let live = null; // the viewer's last count
let listed = ""; // model whose classes are listed
const hidden = new Set(); // values of classes that are switched off

// what is shown, and by which model

const shownResult = () => files.resultOf(files.current);
const shownModel = () => status.models.get(shownResult()?.modelId) ?? status.health?.model ?? null;
const ownThreshold = () => shownModel()?.threshold ?? 0.5;
const settings = () => ({ threshold: shownModel()?.binary ? threshold : null, tta: files.tta || null });
const shown = (t) => String(Number(t.toFixed(3))).padEnd(4, t % 1 ? "0" : ".00").slice(0, 5);

const announce = (text) => ($("live").textContent = text);

async function draw() {
  drawing.abort();
  counting.abort();
  drawing = new AbortController();
  const { signal } = drawing;
  const item = files.current;
  const isFirst = item && document.body.dataset.state === "empty";
  document.body.dataset.state = item ? "open" : "empty";
  if (isFirst && document.activeElement !== document.body) $("view").focus(); // its button is hidden now
  placeTraining();
  document.title = item ? `${item.name} · unet-service` : "unet-service";
  showState();
  if (!item) return clear();
  const { page } = item;
  try {
    const bitmap = await item.bitmap(page, { signal });
    if (signal.aborted) return;
    const isAnother = drawn?.item !== item || drawn.page !== page;
    drawn = { item, page, width: bitmap.width, height: bitmap.height };
    if (isAnother) forget();
    viewer.showImage(bitmap);
    if (page === 1) item.drawThumbnail(bitmap);
    item.pictureError = null;
    strip.update(item);
  } catch (error) {
    if (signal.aborted) return;
    report(error);
    item.pictureError = error;
    clear();
  }
  showState();
  await showResult();
}

function clear() {
  drawn = null;
  forget();
  viewer.showImage(null);
}

/** Nothing is known yet of what is shown. */
function forget() {
  counting.abort();
  live = null;
  viewer.showProbability(null);
  panel.showFound(null);
  panel.showClassCounts(() => undefined);
  panel.showWarning("");
}

async function showResult() {
  const { signal } = drawing;
  const [item, result, model] = [files.current, shownResult(), shownModel()];
  if (!result || drawn?.item !== item || drawn.page !== item.page) return;
  if (!status.models.has(result.modelId)) status.look();
  const pixels = await decodePng(result.probability ?? result.mask).catch(report);
  if (signal.aborted || !pixels) return;
  if ((pixels.width !== drawn.width || pixels.height !== drawn.height) && item.distrust()) return draw();
  live = null;
  showModel(model);
  viewer.threshold = threshold ?? ownThreshold();
  if (result.probability) viewer.showProbability(pixels);
  else viewer.showClasses(pixels, model.classes, result.likeliest && (await decodePng(result.likeliest)));
  panel.showWarning(result.warning);
  panel.showAnswered(model, result.timing, status.health);
  countExactly();
  if (!result.probability && !result.likeliest) fetchLikeliest(item, result, signal);
}

/** How certain a model of several classes is, for the pointer. */
async function fetchLikeliest(item, result, signal) {
  try {
    const options = { output: "probability", page: item.page, tta: result.tta || null };
    const { blob, headers } = await api.post("segment", item.file, options, { signal });
    if (signal.aborted || headers.get("X-Model-Id") !== result.modelId) return;
    result.likeliest = blob;
    const [mask, likeliest] = await Promise.all([decodePng(result.mask), decodePng(blob)]);
    if (!signal.aborted) viewer.showClasses(mask, shownModel().classes, likeliest);
  } catch (error) {
    if (!signal.aborted) report(error);
  }
}

// numbers

/** The table's numbers at this threshold, where they are known. */
const exactly = () => shownResult()?.exact.get(settings().threshold);

function showNumbers() {
  const exact = exactly();
  if (exact) {
    panel.showFound({ ...exact, share: exact.pixels / (drawn.width * drawn.height) }, "exact");
    panel.showClassCounts((name) => exact.byClass.get(name) ?? 0);
  } else if (live && drawn) {
    const known = [...(shownResult()?.exact.values() ?? [])].find(({ unit }) => unit !== "px");
    const area = known ? known.areas.reduce((a, b) => a + b, 0) / known.pixels : 1; // of a pixel
    const sum = live.areas.reduce((a, b) => a + b, 0);
    const areas = known ? live.areas.map((each) => each * area) : live.areas;
    panel.showFound({ areas, unit: known?.unit ?? "px", share: sum / (drawn.width * drawn.height) }, isCounting ? "counting" : "about");
    panel.showClassCounts((_, value) => live.byClass.get(value)?.count);
  }
}

async function countExactly(rest = 0) {
  counting.abort();
  counting = new AbortController();
  const { signal } = counting;
  const [item, result, at] = [files.current, shownResult(), settings().threshold];
  isCounting = Boolean(result) && !exactly();
  if (!result) return;
  showNumbers();
  if (!isCounting) return;
  try {
    await new Promise((resolve) => setTimeout(resolve, rest));
    if (signal.aborted) return;
    const options = { output: "table", page: item.page, threshold: at, tta: result.tta || null };
    const { blob, headers } = await api.post("segment", item.file, options, { signal, urgency: 2 });
    if (headers.get("X-Model-Id") !== result.modelId) throw new ModelChanged();
    result.exact.set(at, measure(await blob.text()));
    if (signal.aborted) return;
    showNumbers();
    announce(`${item.name}: ${panel.sentence({ ...exactly(), share: exactly().pixels / (drawn.width * drawn.height) })}`);
  } catch (error) {
    if (signal.aborted) return;
    report(error);
    isCounting = false;
    showNumbers();
    if (error instanceof ModelChanged) status.look();
  }
}

viewer.addEventListener("regions", ({ detail }) => {
  if (!shownResult()) return;
  live = detail;
  showNumbers();
});

// controls

function showModel(model) {
  document.body.dataset.model = model ? (model.binary ? "binary" : "classes") : "none";
  $("threshold-section").hidden = model?.binary === false;
  $("classes-section").hidden = !model || model.binary;
  $("colour").hidden = model?.binary === false;
  showThreshold();
  if (!model || listed === model.id) return;
  listed = model.id;
  setColour(model.classes.at(-1).colour);
  const listedClasses = model.classes.slice(1); // the first is the background
  panel.showClasses(listedClasses, hidden, (value, isVisible) => {
    if (isVisible) hidden.delete(value);
    else hidden.add(value);
    viewer.setVisible(value, isVisible);
    $("classes-all").textContent = hidden.size ? "Show all" : "Hide all";
  });
}

function showThreshold() {
  const t = threshold ?? ownThreshold();
  $("threshold").value = t;
  $("threshold").style.setProperty("--at", t);
  $("threshold-text").textContent = shown(t);
  $("tick").style.left = `${100 * ownThreshold()}%`;
  $("threshold-reset").disabled = threshold === null;
}

function setThreshold(t) {
  threshold = t;
  showThreshold();
  viewer.threshold = threshold ?? ownThreshold();
  countExactly(REST_MS);
}

$("threshold").addEventListener("input", () => setThreshold(Number($("threshold").value)));
$("threshold-reset").addEventListener("click", () => ($("threshold").focus(), setThreshold(null)));
const moveThreshold = (by) => {
  if (!$("threshold-section").hidden) setThreshold(Math.min(1, Math.max(0, Math.round(100 * ((threshold ?? ownThreshold()) + by)) / 100)));
};

$("classes-all").addEventListener("click", () => {
  const show = hidden.size > 0;
  for (const box of $("classes").querySelectorAll("input")) if (box.checked !== show) box.click();
});

function setColour(colour) {
  viewer.colour = colour;
  $("colour").value = `#${colour.map((each) => each.toString(16).padStart(2, "0")).join("")}`;
}

$("colour").addEventListener("input", () => setColour([1, 3, 5].map((at) => parseInt($("colour").value.slice(at, at + 2), 16))));

const opacities = { fill: 0.5, outline: 1 };
function setOpacity(value) {
  opacities[style()] = value;
  $("opacity").value = value;
  $("opacity").style.setProperty("--at", $("opacity").value);
  $("opacity-text").textContent = `${Math.round(100 * $("opacity").value)} %`;
  peek(false);
}

function peek(isHidden) {
  $("peek").setAttribute("aria-pressed", String(isHidden));
  viewer.opacity = isHidden ? 0 : Number($("opacity").value);
}

const style = () => document.querySelector("[name=style]:checked").value;
const isPeeking = () => $("peek").getAttribute("aria-pressed") === "true";
$("opacity").addEventListener("input", () => setOpacity(Number($("opacity").value)));
$("peek").addEventListener("click", () => peek(!isPeeking()));
for (const radio of document.querySelectorAll("[name=style]")) {
  radio.addEventListener("change", () => {
    viewer.style = style();
    setOpacity(opacities[style()]);
  });
}
const toggleStyle = () => document.querySelector("[name=style]:not(:checked)").click();

$("tta").addEventListener("change", () => {
  files.tta = $("tta").checked;
  forget();
  files.again({ forget: false });
  showResult();
});

// zoom, pointer, pages

$("zoom-in").addEventListener("click", () => viewer.zoomBy(ZOOM));
$("zoom-out").addEventListener("click", () => viewer.zoomBy(1 / ZOOM));
$("fit").addEventListener("click", () => viewer.fit());
$("actual").addEventListener("click", () => viewer.actualSize());
viewer.addEventListener("view", ({ detail }) => ($("scale").textContent = `${Math.round(100 * detail.scale)} %`));

viewer.addEventListener("pointer", ({ detail }) => ($("pointer").textContent = detail ? under(detail) : ""));

/** The value under the pointer in words. */
function under({ x, y, probability, value }) {
  const where = `x ${x}, y ${y}`;
  const model = shownModel();
  if (!model || (probability === null && value === null)) return where;
  const sure = probability === null ? "" : `${Math.round(100 * probability)} %`;
  if (model.binary) return `${where}: ${sure} ${panel.className(model.classes.at(-1))}`;
  const found = model.classes.find((each) => each.value === value);
  return `${where}: ${found ? panel.className(found) : value}${sure && `, ${sure} sure`}`;
}

let turning;
let wanted = null; // page that the slider is at, until it rests
function turnTo(page) {
  const item = files.current;
  if (!item || page < 1 || page > item.pages) return;
  clearTimeout(turning);
  wanted = page;
  showPages(page, item.pages);
  turning = setTimeout(() => {
    wanted = null;
    if (files.current !== item || item.page === page) return;
    files.turnTo(item, page);
    draw();
  }, TURN_MS);
}

function showPages(page, pages) {
  $("pages").hidden = pages < 2;
  $("page").max = pages;
  $("page").value = page;
  $("page").style.setProperty("--at", pages > 1 ? (page - 1) / (pages - 1) : 0);
  $("page-text").textContent = `${page} of ${pages}`;
  $("page-back").disabled = page <= 1;
  $("page-on").disabled = page >= pages;
}

$("page").addEventListener("input", () => turnTo(Number($("page").value)));
$("page-back").addEventListener("click", () => turnBy(-1)());
$("page-on").addEventListener("click", () => turnBy(1)());

// saving

const saving = new Map(); // kind -> AbortController; a second click cancels
async function save(kind) {
  const item = files.current;
  const button = $(`save-${kind}`);
  if (!item || button.disabled) return;
  if (saving.has(kind)) return saving.get(kind).abort();
  const { signal } = saving.set(kind, new AbortController()).get(kind);
  button.setAttribute("aria-busy", "true");
  button.title = "Cancel";
  try {
    const { name, blob } = await answer(api, item, kind, settings(), shownResult()?.modelId, { signal, urgency: 3 });
    download(blob, name);
    announce(`Saved ${name}`);
    notice("save", null);
  } catch (error) {
    if (!signal.aborted) fail(error, kind);
  }
  button.removeAttribute("aria-busy");
  button.title = "";
  saving.delete(kind);
}

function fail(error, kind) {
  report(error);
  const title = KINDS.find(({ name }) => name === kind).title;
  notice("save", `${title} was not saved. ${[error.title, error.message].filter(Boolean).join(": ")}.`, { isError: true });
  if (error instanceof ModelChanged) status.look(); // which offers to segment again
}

$("kinds").append(
  ...KINDS.map(({ name, title, hint }) => {
    const button = Object.assign(document.createElement("button"), { type: "button", id: `save-${name}`, className: "kind" });
    button.dataset.kind = name;
    button.append(
      Object.assign(document.createElement("span"), { textContent: title }),
      Object.assign(document.createElement("small"), { textContent: hint }),
    );
    button.addEventListener("click", () => save(name));
    return button;
  }),
);

installZip(api, () => ({
  items: files.list,
  settings: settings(),
  words: shownModel()?.binary ? `, threshold ${shown(threshold ?? ownThreshold())}` : "",
  modelIdOf: (item) => files.resultOf(item)?.modelId ?? null,
}));

// notices

/** A line above the image; null takes it away. */
function notice(id, text, { isError = false, action = null } = {}) {
  const before = $(`notice-${id}`);
  if (!text) return before?.remove();
  if (before?.querySelector("p").textContent === text) return;
  const line = Object.assign(document.createElement("div"), { id: `notice-${id}`, className: "notice" });
  line.setAttribute("role", isError ? "alert" : "status");
  line.append(Object.assign(document.createElement("p"), { textContent: text }));
  const button = (label, className, act) => {
    const each = Object.assign(document.createElement("button"), { type: "button", className, textContent: label });
    each.addEventListener("click", act);
    line.append(each);
  };
  if (action) button(action.label, "primary small", action.act);
  if (isError) button("Dismiss", "plain small", () => line.remove());
  before ? before.replaceWith(line) : $("notices").append(line);
}

function again() {
  notice("newer", null);
  notice("save", null);
  forget();
  files.again({ forget: true });
}

// the service

status.addEventListener("change", () => {
  const { state, model, training, health } = status;
  $("service").dataset.state = state;
  $("service-text").textContent = serviceWords();
  showTraining(training, Boolean(health?.model));
  placeTraining();
  if (!shownResult()) showModel(shownModel());
  if (!shownResult() && health) panel.showAnswered(health.model, "", health);
  files.served = model;
  showWelcome();
  showState();
  notice("offline", state === "offline" ? "The service does not answer. This page keeps trying, and goes on by itself." : null);
  notice("key", state === "key" ? "This service needs a key." : null, { action: { label: "Enter the key", act: enterKey } });
  const older = files.list.map((item) => files.resultOf(item)).filter((result) => model && result && result.modelId !== model.id);
  notice("newer", older.length ? newer(model, status.models.get(older[0].modelId)) : null, { action: { label: "Segment again", act: again } });
  const lost = files.current?.pictureError instanceof Unreachable;
  if (lost && state !== "offline") draw();
});

function enterKey() {
  api.declined = false;
  status.look();
}

function placeTraining() {
  const isWelcome = document.body.dataset.state === "empty" && !status.health?.model;
  $(isWelcome ? "training-place" : "training-aside").append($("training"));
}

function serviceWords() {
  const { state, health, training } = status;
  if (state === "ok") return `Ready · ${health.device.startsWith("cuda") ? "GPU" : health.device.toUpperCase()}`;
  if (state === "waiting") return training?.state === "running" ? `Training, ${brief(training)}` : "Waiting for a model";
  const words = { failed: "Model cannot be used", stopping: "Stopping", offline: "No answer", key: "Needs a key" };
  return words[state] ?? "Connecting";
}

function newer(model, before) {
  const scores = [model, before].map((each) => each?.score);
  const score = scores[0] == null ? "" : ` Its score is ${scores[0].toFixed(2)}${scores[1] == null ? "" : `, before ${scores[1].toFixed(2)}`}.`;
  return `A newer model is here.${score} What you see is still the older one’s.`;
}

function showWelcome() {
  const { state, health, training } = status;
  const model = health?.model;
  const verb = matchMedia("(hover: none)").matches ? "Choose" : "Drop";
  let title = `${verb} an image to segment it`;
  let text = "A network that has learned from a few annotated images marks what it knows in yours, pixel by pixel.";
  if (model) {
    const source = model.n_images ? count(model.n_images, "annotated image") : "annotated images";
    text = `A network that has learned from ${source} marks ${knows(model)} in yours, pixel by pixel.`;
  } else if (state === "failed") {
    title = "The model cannot be used";
    text = `${health.refused}. This page begins by itself when there is a good one.`;
  } else if (state === "waiting") {
    title = training?.state === "running" ? "The model is still learning" : "There is no model yet";
    text = training?.state === "running"
      ? "This page begins by itself when it is ready. You can already add images."
      : "Train one with unet-train. This page begins by itself when it is there.";
  }
  $("empty-title").textContent = title;
  $("empty-text").textContent = text;
}

function knows({ classes }) {
  const names = classes.slice(1).map(panel.className);
  if (names.length === 1) return names[0] === "object" ? "the objects" : names[0] === "foreground" ? "the foreground" : names[0];
  if (names.length > 5) return count(names.length, "class", "classes");
  return `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** State of the image that is shown: caption, progress, error. */
function showState() {
  const item = files.current;
  const error = item && (item.state === "failed" ? item.error : item.pictureError instanceof Problem ? item.pictureError : null);
  const state = !item ? "empty" : error ? "failed" : item.state;
  $("stage").dataset.state = state;
  $("progress").hidden = state !== "working" && state !== "waiting";
  $("problem").hidden = !error;
  if (error && $("problem-title").textContent !== (error.title ?? "This did not work")) announce(`${item.name}: ${error.title}`);
  const isFinal = error?.status >= 400 && error.status < 500 && error.status !== 401 && error.status !== 408;
  $("retry").className = isFinal ? "plain" : "primary";
  $("remove").className = isFinal ? "primary" : "plain";
  $("problem-title").textContent = error ? (error.title ?? "This did not work") : "";
  $("problem-advice").textContent = error?.advice ?? "";
  $("problem-detail").textContent = error?.message ?? "";
  $("caption").hidden = !item;
  if (item) {
    $("caption-name").textContent = item.name;
    $("caption-size").textContent = drawn?.item === item ? `${number(drawn.width)} × ${number(drawn.height)}` : "";
    $("caption-state").textContent = stateWords(item);
  }
  if (item) showPages(wanted ?? item.page, item.pages);
  for (const { name } of KINDS) $(`save-${name}`).disabled = state === "failed" || !item || !status.model;
  $("save-all").disabled = !status.model;
}

function stateWords(item) {
  if (item.state === "working") {
    const seconds = Math.floor((performance.now() - item.since) / 1000);
    return seconds < 3 ? "Segmenting …" : `Segmenting … ${seconds} s`;
  }
  if (item.state !== "waiting") return "";
  return { ok: "Waiting its turn", offline: "Waiting for the service", key: "Waiting for the key" }[status.state] ?? "Waiting for the model";
}

// images

function remove(item) {
  files.remove(item);
  $(files.current ? "view" : "choose").focus();
}

const strip = new Strip($("thumbnails"), { show: (item) => files.show(item), remove });
files.addEventListener("list", () => {
  strip.render(files.list, files.current);
  $("strip").hidden = files.list.length < 2;
  draw();
});
files.addEventListener("item", ({ detail: item }) => {
  strip.update(item);
  if (item === files.current) showState();
});
files.addEventListener("result", ({ detail: item }) => {
  if (item === files.current) showResult();
});
files.addEventListener("lost", () => status.look());
$("retry").addEventListener("click", () => {
  api.declined = false;
  files.retry(files.current);
  draw();
});
for (const id of ["remove", "close"]) $(id).addEventListener("click", () => remove(files.current));

installInput((added) => {
  api.declined = false;
  files.add(added);
});
$("example").addEventListener("click", async () => {
  try {
    const response = await fetch("static/example.png");
    if (!response.ok) throw await Problem.of(response);
    files.add([new File([await response.blob()], "example.png", { type: "image/png" })]);
  } catch (error) {
    report(error);
    notice("example", "The example could not be fetched.", { isError: true });
  }
});

/** Errors that are no answer of the service are ours: they belong into the console. */
function report(error) {
  if (!(error instanceof Problem || error instanceof Unreachable || error instanceof ModelChanged)) console.error(error);
}

const pan = (x, y) => () => viewer.panBy(x * STEP, y * STEP);
const turnBy = (by) => () => turnTo((wanted ?? files.current?.page ?? 0) + by);
installKeys([
  { what: "Add images", keys: { a: () => $("chooser").click() } },
  { what: "Next, previous image", keys: { n: () => files.step(1), p: () => files.step(-1) } },
  { what: "Next, previous page of a stack", keys: { ".": turnBy(1), ",": turnBy(-1) } },
  { what: "Threshold up, down", keys: { "]": () => moveThreshold(0.01), "[": () => moveThreshold(-0.01) } },
  { what: "Fill or outlines", keys: { o: toggleStyle } },
  { what: "Hide or show the mask", keys: { h: () => peek(!isPeeking()) } },
  { what: "Zoom in, out", keys: { "+": () => viewer.zoomBy(ZOOM), "-": () => viewer.zoomBy(1 / ZOOM) } },
  { what: "Whole image, actual size", keys: { 0: () => viewer.fit(), 1: () => viewer.actualSize() } },
  { what: "Move the image", keys: { ArrowLeft: pan(1, 0), ArrowRight: pan(-1, 0), ArrowUp: pan(0, 1), ArrowDown: pan(0, -1) }, inView: true },
  { what: "Save the mask", keys: { s: () => save("mask") } },
  { what: "This list", keys: { "?": () => $("help-dialog").showModal() } },
]);

setInterval(() => files.current?.state === "working" && showState(), 1000);
panel.showFound(null);
setOpacity(opacities.fill);
showState();
status.watch();
