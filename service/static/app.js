/** The page: joins files, service, viewer and controls. */

import { Api, Problem, Trouble, Unreachable } from "./api.js";
import { $ } from "./dom.js";
import { Files } from "./files.js";
import { install as installInput } from "./input.js";
import { askForKey } from "./key.js";
import { install as installKeys } from "./keys.js";
import { install as installLook } from "./look.js";
import { notice } from "./notices.js";
import { Pages } from "./pages.js";
import * as panel from "./panel.js";
import { decodePng } from "./png.js";
import { answer, ModelChanged } from "./answers.js";
import { enableSaving, installButtons, installZip } from "./save-buttons.js";
import { Status } from "./status.js";
import { Strip } from "./strip.js";
import { measure } from "./table.js";
import { Threshold } from "./threshold.js";
import { showTraining } from "./training.js";
import { Viewer } from "./viewer.js";
import { newerWords, serviceWords, showWelcome, waitingWords } from "./service-words.js";
import { number } from "./words.js";

const LATE_MS = 300; // for that long the image before stays, without its numbers: most pictures are there sooner
const REST_MS = 500; // of the slider, before the service counts exactly
const ZOOM = 1.5;
const STEP = 40; // CSS pixels that an arrow key moves the image

const api = new Api(askForKey, () => {
  files.retryWithKey();
  status.look();
  if (files.current?.pictureError?.status === 401) draw();
});
const files = new Files(api);
const status = new Status(api);
const viewer = new Viewer($("canvas"));
const look = installLook(viewer);
const threshold = new Threshold();
const pages = new Pages();
const strip = new Strip($("thumbnails"), { show: (item) => files.show(item), remove });

let drawn = null; // {item, page, width, height} of what the canvas shows
let shown = null; // the Result that the canvas shows
let live = null; // the viewer's last count of it
let isCounting = false; // whether the exact one is on its way
let drawing = new AbortController();
let counting = new AbortController();
let listed = ""; // model whose classes are listed
const hidden = new Set(); // values of classes that are switched off

/** The model that made what is shown, else the one that answers now. */
const model = () => status.models.get(shown?.modelId) ?? status.health?.model ?? null;
const settings = () => ({ threshold: model()?.binary ? threshold.byHand : null, tta: files.tta || null });
const announce = (text) => ($("live").textContent = text);

// the image and its mask

async function draw() {
  drawing.abort();
  counting.abort();
  drawing = new AbortController();
  const { signal } = drawing;
  const item = files.current;
  showWhetherEmpty(item);
  showState();
  if (!item) return clear();
  const { page } = item;
  const isDrawn = () => drawn?.item === item && drawn.page === page;
  if (!isDrawn()) forgetNumbers(); // the name and the page above are the new ones already
  setTimeout(() => !signal.aborted && !isDrawn() && (drawn?.item === item ? forget() : clear()), LATE_MS);
  try {
    const bitmap = await item.bitmap(page, { signal });
    if (signal.aborted) return bitmap.close();
    if (!isDrawn()) forget();
    drawn = { item, page, width: bitmap.width, height: bitmap.height };
    viewer.showImage(bitmap);
    if (page === 1) item.drawThumbnail(bitmap);
    item.pictureError = null;
  } catch (error) {
    if (signal.aborted) return;
    report(error);
    item.pictureError = error;
    clear();
  }
  showState();
  await showResult();
}

function showWhetherEmpty(item) {
  const isFirst = item && document.body.dataset.state === "empty";
  document.body.dataset.state = item ? "open" : "empty";
  document.title = item ? `${item.name} · unet-service` : "unet-service";
  if (isFirst && document.activeElement !== document.body) $("view").focus(); // the button that had it is hidden now
  placeTraining();
}

function clear() {
  drawn = null;
  forget();
  viewer.showImage(null);
}

/** Takes the mask away, and all that was said of it. */
function forget() {
  forgetNumbers();
  viewer.showProbability(null);
}

function forgetNumbers() {
  counting.abort();
  shown = live = null;
  panel.showFound(null);
  panel.showClassCounts(() => undefined);
  panel.showWarning("");
}

async function showResult() {
  const { signal } = drawing;
  const [item, result] = [files.current, files.resultOf(files.current)];
  if (!result || drawn?.item !== item || drawn.page !== item.page) return;
  const by = status.models.get(result.modelId);
  if (!by) return status.look(); // which comes back here
  if (by.binary !== Boolean(result.probability)) return files.redo(item); // the model changed after it was asked
  const pixels = await decodePng(result.probability ?? result.mask).catch(report);
  const likeliest = result.likeliest && (await decodePng(result.likeliest).catch(report));
  if (signal.aborted || !pixels || result !== files.resultOf(item)) return;
  if ((pixels.width !== drawn.width || pixels.height !== drawn.height) && item.distrust()) return draw();
  shown = result;
  live = null;
  showModel();
  viewer.threshold = threshold.value;
  if (by.binary) viewer.showProbability(pixels);
  else viewer.showClasses(pixels, by.classes);
  viewer.likeliest = likeliest;
  panel.showWarning(result.warning);
  panel.showAnswered(by, result.timing, status.health);
  countExactly();
  if (!by.binary && !likeliest) fetchLikeliest(item, result, signal);
}

/** How certain a model of several classes is, for the pointer. */
async function fetchLikeliest(item, result, signal) {
  try {
    const options = { output: "probability", page: result.page, tta: result.tta || null };
    const { blob, headers } = await api.post("segment", item.file, options, { signal });
    if (signal.aborted || headers.get("X-Model-Id") !== result.modelId) return;
    result.likeliest = blob;
    const likeliest = await decodePng(blob);
    if (shown === result) viewer.likeliest = likeliest;
  } catch (error) {
    if (!signal.aborted) report(error);
  }
}

/** What depends on the model: threshold or classes. */
function showModel() {
  const by = model();
  document.body.dataset.model = by ? (by.binary ? "binary" : "classes") : "none";
  $("classes-section").hidden = !by || by.binary;
  $("colour").hidden = by?.binary === false;
  threshold.show(by);
  viewer.minArea = by?.smallest_object ?? 1;
  if (!by || listed === by.id) return;
  listed = by.id;
  look.setColour(by.classes.at(-1).colour);
  panel.showClasses(by.classes.slice(1), hidden, (value, isVisible) => {
    if (isVisible) hidden.delete(value);
    else hidden.add(value);
    viewer.setVisible(value, isVisible);
    $("classes-all").textContent = hidden.size ? "Show all" : "Hide all";
  });
}

// numbers

/** The table's numbers at this threshold, where they are known. */
function exactly() {
  const exact = shown?.exact.get(settings().threshold);
  return exact && { ...exact, share: exact.pixels / (drawn.width * drawn.height) };
}

function showNumbers() {
  const exact = exactly();
  if (exact) {
    panel.showFound(exact, "exact");
    const isShared = (name) => model().classes.filter((each) => each.name === name).length > 1;
    panel.showClassCounts((name) => (isShared(name) ? undefined : (exact.byClass.get(name) ?? 0))); // a table has names
  } else if (shown && live) {
    const { unit, pixelArea } = drawn.item;
    const areas = live.areas.map((area) => area * pixelArea);
    const share = live.areas.reduce((a, b) => a + b, 0) / (drawn.width * drawn.height);
    panel.showFound({ areas, unit, share }, isCounting ? "counting" : "about");
    panel.showClassCounts((_, value) => live.byClass.get(value)?.count);
  }
}

/** Asks for the table of what is shown, after a rest in milliseconds. */
async function countExactly(rest = 0) {
  counting.abort();
  counting = new AbortController();
  const { signal } = counting;
  const [result, at] = [shown, settings().threshold];
  isCounting = Boolean(result) && !exactly();
  showNumbers();
  if (!isCounting) return;
  try {
    await new Promise((resolve) => setTimeout(resolve, rest));
    if (signal.aborted) return;
    const { item } = drawn;
    const options = { output: "table", page: result.page, threshold: at, tta: result.tta || null };
    const { blob, headers } = await api.post("segment", item.file, options, { signal, urgency: 2 });
    if (headers.get("X-Model-Id") !== result.modelId) throw new ModelChanged();
    const measured = measure(await blob.text());
    result.exact.set(at, measured);
    if (measured.areas.length) [item.unit, item.pixelArea] = [measured.unit, measured.pixelArea];
    if (signal.aborted) return;
    showNumbers();
    announce(`${item.name}: ${panel.sentence(exactly())}`);
  } catch (error) {
    if (signal.aborted) return;
    report(error);
    isCounting = false;
    showNumbers();
    if (error instanceof ModelChanged) status.look();
  }
}

viewer.addEventListener("regions", ({ detail }) => {
  live = detail;
  showNumbers();
});

// controls

threshold.addEventListener("change", () => {
  viewer.threshold = threshold.value;
  countExactly(REST_MS);
});

$("classes-all").addEventListener("click", () => {
  const show = hidden.size > 0;
  for (const box of $("classes").querySelectorAll("input")) if (box.checked !== show) box.click();
});

$("tta").addEventListener("change", () => {
  files.tta = $("tta").checked;
  forget();
  files.again({ forget: false });
  showResult();
});

pages.addEventListener("turn", ({ detail: page }) => {
  files.turnTo(files.current, page);
  draw();
});

$("zoom-in").addEventListener("click", () => viewer.zoomBy(ZOOM));
$("zoom-out").addEventListener("click", () => viewer.zoomBy(1 / ZOOM));
$("fit").addEventListener("click", () => viewer.fit());
$("actual").addEventListener("click", () => viewer.actualSize());
viewer.addEventListener("view", ({ detail }) => ($("scale").textContent = `${Math.round(100 * detail.scale)} %`));
viewer.addEventListener("pointer", ({ detail }) => {
  $("pointer").textContent = detail ? panel.under(detail, shown && model()) : "";
});

installButtons(
  (kind, signal) => answer(api, files.current, kind, settings(), shown?.modelId, { signal, urgency: 3 }),
  (name) => announce(`Saved ${name}`),
  (error) => {
    report(error);
    if (error instanceof ModelChanged) status.look(); // which offers to segment again
  },
);
installZip(api, () => {
  const ids = new Map(files.list.map((item) => [item, files.resultOf(item)?.modelId ?? status.model?.id]));
  return {
    items: files.list,
    settings: settings(),
    words: model()?.binary ? `, threshold ${threshold.text}` : "",
    modelIdOf: (item) => ids.get(item),
  };
});

// the service

status.addEventListener("change", () => {
  const { state, training, health } = status;
  $("service").dataset.state = state;
  $("service-text").textContent = serviceWords(status);
  showWelcome(status);
  showTraining(training, Boolean(health?.model));
  placeTraining();
  if (!shown) showModel();
  if (!shown && health) panel.showAnswered(health.model, "", health);
  files.served = status.model;
  showState();
  showNotices();
  const { current } = files;
  // one that has failed waits for a click
  const isLost = current?.pictureError instanceof Unreachable && current.state !== "failed";
  if (isLost && state !== "offline") draw();
  else if (status.model) showAwaited();
});

/** A result whose model was not known yet; where it still is not, another model has taken over. */
function showAwaited() {
  const result = files.resultOf(files.current);
  if (!result || result === shown) return;
  if (status.models.has(result.modelId)) showResult();
  else files.redo(files.current);
}

function showNotices() {
  const { state, model: served } = status;
  const isOffline = state === "offline";
  notice("offline", isOffline ? "The service does not answer. This page keeps trying, and goes on by itself." : null);
  const action = { label: "Enter the key", act: enterKey };
  notice("key", state === "key" ? "This service needs a key." : null, { action });
  const ids = files.list.map((item) => files.resultOf(item)?.modelId).filter(Boolean);
  const old = served && ids.find((id) => id !== served.id);
  const text = old ? newerWords(served, status.models.get(old)) : null;
  notice("newer", text, { action: { label: "Segment again", act: segmentAgain } });
}

function enterKey() {
  api.declined = false;
  status.look();
}

function segmentAgain() {
  notice("newer", null);
  notice("save", null);
  forget();
  files.again({ forget: true });
}

function placeTraining() {
  const isWelcome = document.body.dataset.state === "empty" && !status.health?.model;
  const place = $(isWelcome ? "training-place" : "training-aside");
  if ($("training").parentElement !== place) place.append($("training"));
}

/** State of the image that is shown: caption, progress, error. */
function showState() {
  const item = files.current;
  const pictureError = item?.pictureError instanceof Unreachable ? null : item?.pictureError;
  const error = item?.state === "failed" ? item.error : pictureError;
  const state = error ? "failed" : (item?.state ?? "empty");
  $("stage").dataset.state = state;
  $("progress").hidden = state !== "working" && state !== "waiting";
  $("caption").hidden = !item;
  pages.show(item);
  if (item) {
    $("caption-name").textContent = item.name;
    $("caption-size").textContent = drawn?.item === item ? `${number(drawn.width)} × ${number(drawn.height)}` : "";
    $("caption-state").textContent = stateWords(item);
    $("result-title").textContent = item.pages > 1 ? `Result, page ${item.page}` : "Result";
    $("save-title").textContent = item.pages > 1 ? `Save all ${item.pages} pages` : "Save";
  }
  showProblem(error);
  enableSaving(item && !error, Boolean(status.model));
}

function showProblem(error) {
  $("problem").hidden = !error;
  if (!error) return;
  const isFinal = error.status >= 400 && error.status < 500 && ![401, 408].includes(error.status);
  $("retry").className = isFinal ? "plain" : "primary";
  $("remove").className = isFinal ? "primary" : "plain";
  $("problem-title").textContent = error.title ?? "This did not work";
  $("problem-advice").textContent = error.advice ?? "";
  $("problem-detail").textContent = error.message;
}

function stateWords(item) {
  if (item.state === "waiting") return waitingWords(status);
  if (item.state !== "working") return "";
  const seconds = Math.floor((performance.now() - item.since) / 1000);
  return seconds < 3 ? "Segmenting …" : `Segmenting … ${seconds} s`;
}

// images

function remove(item) {
  files.remove(item);
  $(files.current ? "view" : "choose").focus();
}

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
for (const id of ["remove", "close"]) $(id).addEventListener("click", () => remove(files.current));
$("retry").addEventListener("click", () => {
  api.declined = false;
  files.retry(files.current);
  draw();
});

function add(images) {
  api.declined = false;
  files.add(images);
}

installInput(add);
$("example").addEventListener("click", async () => {
  try {
    const response = await api.get("static/example.png");
    if (!response.ok) throw await Problem.of(response);
    add([new File([await response.blob()], "example.png", { type: "image/png" })]);
  } catch (error) {
    report(error);
    notice("example", "The example could not be fetched.", { isError: true });
  }
});

/** Errors that the service did not tell of are ours: they belong into the console. */
function report(error) {
  if (!(error instanceof Trouble)) console.error(error);
}

const pan = (x, y) => () => viewer.panBy(x * STEP, y * STEP);
installKeys([
  { what: "Add images", keys: { a: () => $("chooser").click() } },
  { what: "Next, previous image", keys: { n: () => files.step(1), p: () => files.step(-1) } },
  { what: "Next, previous page of a stack", keys: { ".": () => pages.step(1), ",": () => pages.step(-1) } },
  { what: "Threshold up, down", keys: { k: () => threshold.step(0.01), j: () => threshold.step(-0.01) } },
  { what: "Fill or outlines", keys: { o: look.toggleStyle } },
  { what: "Hide or show the mask", keys: { h: look.toggleMask } },
  { what: "Zoom in, out", keys: { "+": () => viewer.zoomBy(ZOOM), "-": () => viewer.zoomBy(1 / ZOOM) } },
  { what: "Whole image, actual size", keys: { 0: () => viewer.fit(), 1: () => viewer.actualSize() } },
  {
    what: "Move the image",
    keys: { ArrowLeft: pan(1, 0), ArrowRight: pan(-1, 0), ArrowUp: pan(0, 1), ArrowDown: pan(0, -1) },
    inView: true,
  },
  { what: "Save the mask", keys: { s: () => $("save-mask").click() } },
  { what: "This list", keys: { "?": () => $("help-dialog").showModal() } },
]);

setInterval(() => files.current?.state === "working" && showState(), 1000);
panel.showFound(null);
showState();
status.watch();
