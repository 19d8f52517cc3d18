/** How far a training is: words, a bar, and a live curve. */

import { $, shape } from "./dom.js";
import { clock, count, duration, number } from "./words.js";

const WIDTH = 320;
const HEIGHT = 120;
const LEFT = 26;
const BOTTOM = 16;
const TOP = 8;
const RIGHT = 34;

/** Shows a training (the JSON of GET /training), or hides the card when there is none to tell of. */
export function showTraining(training, isServed) {
  const state = training?.state ?? "none";
  const card = $("training");
  card.dataset.state = state;
  card.hidden = state === "none" || (isServed && state !== "running");
  if (card.hidden) return;
  $("training-title").textContent = isServed ? "Next model" : "Training";
  const done = Math.round(100 * (training.done ?? 0));
  $("training-meter").setAttribute("aria-valuenow", done);
  $("training-meter").firstElementChild.style.width = `${done}%`;
  $("training-left").textContent = left(training);
  $("training-text").textContent = sentence(training);
  drawCurve(training.history ?? []);
}

/** For the status line: "epoch 12 of 60, 14 minutes left". */
export const brief = (training) => [epochs(training), left(training)].filter(Boolean).join(", ");

function epochs({ epoch, epochs: all }) {
  if (epoch === null) return "";
  return all ? `epoch ${epoch} of ${all}` : `epoch ${epoch}`;
}

/** How long it still takes, in words. */
export function left({ state, seconds_left: seconds }) {
  if (state !== "running" || seconds === null) return "";
  return seconds < 5 ? "almost done" : `${duration(seconds)} left`;
}

function sentence(training) {
  const { state, score, done, finishes_at: end } = training;
  const where = epochs(training);
  const scored = score === null ? "" : ` Score so far: ${score.toFixed(2)}.`;
  if (state === "stopped") {
    return `Stopped${where ? ` at ${where}` : ""}.${scored} The same unet-train command continues it.`;
  }
  if (state === "finished") return `Finished${where ? ` after ${where}` : ""}.${scored}`;
  const unnumbered = done > 0.01 ? `${Math.round(100 * done)} % done.` : "It has just begun."; // several runs: a curve
  const begun = where ? `${where[0].toUpperCase()}${where.slice(1)}.` : unnumbered;
  return `${begun}${scored}${end ? ` Ready about ${clock(new Date(end))}.` : ""}`;
}

function drawCurve(history) {
  const scored = history.filter((row) => Number.isFinite(row.score));
  const lost = history.filter((row) => Number.isFinite(row.loss));
  const svg = $("curve");
  const hasCurve = Math.max(scored.length, lost.length) > 1;
  svg.toggleAttribute("hidden", !hasCurve);
  $("curve-legend").hidden = !hasCurve;
  if (!hasCurve) return;
  const [first, last] = [history[0].epoch, history.at(-1).epoch];
  const worst = Math.max(...lost.map((row) => row.loss), 1e-9);
  const x = (row) => LEFT + ((row.epoch - first) / (last - first || 1)) * (WIDTH - LEFT - RIGHT);
  const y = (share) => TOP + (1 - share) * (HEIGHT - TOP - BOTTOM);
  svg.replaceChildren();
  for (const share of [0, 0.5, 1]) {
    svg.append(
      shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(share), y2: y(share) }),
      shape("text", { x: LEFT - 6, y: y(share) + 3.5, "text-anchor": "end" }, share === 0.5 ? "0.5" : String(share)),
    );
  }
  svg.append(
    shape("text", { x: LEFT, y: HEIGHT - 2 }, `epoch ${first}`),
    shape("text", { x: WIDTH - RIGHT, y: HEIGHT - 2, "text-anchor": "end" }, String(last)),
    shape("polyline", { class: "loss", points: points(lost, x, (row) => y(row.loss / worst)) }),
    shape("polyline", { class: "score", points: points(scored, x, (row) => y(row.score)) }),
  );
  const newest = scored.at(-1);
  if (newest) {
    svg.append(
      shape("circle", { class: "score", cx: x(newest), cy: y(newest.score), r: 3 }),
      shape("text", { class: "score", x: x(newest) + 7, y: y(newest.score) + 4 }, newest.score.toFixed(2)),
    );
  }
  const begin = scored[0] ? `from ${scored[0].score.toFixed(2)} to ${newest.score.toFixed(2)}` : "not known yet";
  const loss = lost.length ? `; loss from ${number(lost[0].loss)} to ${number(lost.at(-1).loss)}` : "";
  svg.setAttribute("aria-label", `Curve over ${count(history.length, "epoch")}: score ${begin}${loss}`);
}

const points = (rows, x, y) => rows.map((row) => `${x(row).toFixed(1)},${y(row).toFixed(1)}`).join(" ");
