/** What the service is doing, in words: on the first visit, in the header, about a newer model. */

import { $ } from "./dom.js";
import { className } from "./panel.js";
import { brief, left } from "./training.js";
import { count } from "./words.js";

const WORDS = { failed: "Model cannot be used", stopping: "Stopping", offline: "No answer", key: "Needs a key" };

/** A few words for the header. @param {import("./status.js").Status} status */
export function serviceWords({ state, health, training }) {
  if (state === "ok") {
    const next = training && left(training);
    const device = health.device.startsWith("cuda") ? "GPU" : health.device.toUpperCase();
    return `Ready · ${device}${next ? ` · next model: ${next}` : ""}`;
  }
  if (state !== "waiting") return WORDS[state] ?? "Connecting";
  return training?.state === "running" ? `Training, ${brief(training)}` : "Waiting for a model";
}

/** Why an image waits. */
export function waitingWords({ state }) {
  const words = { ok: "Waiting its turn", offline: "Waiting for the service", key: "Waiting for the key" };
  return words[state] ?? "Waiting for the model";
}

export function newerWords(model, before) {
  const [now, then] = [model, before].map((each) => each?.score?.toFixed(2));
  const score = now ? ` Its score is ${now}${then ? `, before ${then}` : ""}.` : "";
  return `A newer model is here.${score} What you see is still the older one’s.`;
}

/** Headline and sentence of the first visit. */
export function showWelcome(status) {
  [$("empty-title").textContent, $("empty-text").textContent] = welcome(status);
}

function welcome({ state, health, training }) {
  const title = `${matchMedia("(hover: none)").matches ? "Choose" : "Drop"} an image to segment it`;
  const model = health?.model;
  if (model) {
    const source = model.n_images ? count(model.n_images, "annotated image") : "annotated images";
    return [title, `A network that has learned from ${source} marks ${known(model)} in yours, pixel by pixel.`];
  }
  if (state === "failed") {
    return ["The model cannot be used", `${health.refused}. This page begins by itself when there is a good one.`];
  }
  if (state !== "waiting") {
    return [title, "A network that has learned from annotated images marks what it knows in yours, pixel by pixel."];
  }
  return training?.state === "running"
    ? ["The model is still learning", "This page begins by itself when it is ready. You can already add images."]
    : ["There is no model yet", "Train one with unet-train. This page begins by itself when it is there."];
}

/** The classes of a model but the background, as one would say them. */
function known({ classes }) {
  const names = classes.slice(1).map(className);
  if (names.length > 5) return count(names.length, "class", "classes");
  if (names.length > 1) return `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
  return { object: "the objects", foreground: "the foreground" }[names[0]] ?? names[0];
}
