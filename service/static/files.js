/** The images a person has added: what each is, what was answered, and the queue in which they are segmented. */

import { Trouble, Unreachable } from "./api.js";

const THUMBNAIL = 144; // pixels, for 72 on a screen of twice the density
const ASIDE = 0; // urgency of images that nobody looks at
const SHOWN = 1; // of the one that is shown

/**
 * @typedef {object} Result what the service answered about one page
 * @property {number} page
 * @property {string} modelId
 * @property {boolean} tta
 * @property {Blob|null} probability of the foreground; binary models
 * @property {Blob|null} mask class values; other models
 * @property {Blob|null} likeliest probability of the likeliest class, once fetched
 * @property {string} warning
 * @property {string} timing the Server-Timing header
 * @property {Map<string, object>} exact what the table says, by threshold
 */

/** One image or stack. */
export class Item {
  /** @type {"waiting"|"working"|"done"|"failed"} */
  state = "waiting";
  error = null; // why it failed
  pictureError = null; // why there is no picture of it
  page = 1;
  pages = 1;
  unit = "px"; // of areas, until a table says otherwise
  pixelArea = 1; // in this unit
  since = 0; // when its request began
  losses = 0; // requests in a row that had no answer
  /** @type {Map<string, Result>} by page and way of predicting */
  results = new Map();
  #pictures = new Map(); // PNGs of pages, from /preview
  #isForeign = null;

  constructor(file, api) {
    this.file = file;
    this.api = api;
    this.thumbnail = document.createElement("canvas");
  }

  get name() {
    return this.file.name;
  }

  /** The page as the browser can draw it. Raises Problem or Unreachable. @returns {Promise<ImageBitmap>} */
  async bitmap(page, { signal, urgency = SHOWN } = {}) {
    this.#isForeign ??= await isForeign(this.file);
    if (!this.#isForeign) {
      const bitmap = await createImageBitmap(this.file).catch(() => null);
      if (bitmap) return bitmap;
      this.#isForeign = true;
    }
    if (!this.#pictures.has(page)) {
      const { blob, headers } = await this.api.post("preview", this.file, { page }, { signal, urgency });
      this.pages = Number(headers.get("X-Pages")) || 1;
      this.#pictures.set(page, blob);
    }
    return createImageBitmap(this.#pictures.get(page));
  }

  /** From now on the service draws it: the browser's picture has another size than the answer. */
  distrust() {
    const changed = !this.#isForeign;
    this.#isForeign = true;
    return changed;
  }

  drawThumbnail(bitmap) {
    const scale = THUMBNAIL / Math.max(bitmap.width, bitmap.height);
    this.thumbnail.width = Math.max(1, Math.round(bitmap.width * scale));
    this.thumbnail.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = this.thumbnail.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, this.thumbnail.width, this.thumbnail.height);
  }
}

/** Whether the browser cannot show a file, or not as the service reads it. */
async function isForeign(file) {
  const head = new Uint8Array(await file.slice(0, 2 ** 16).arrayBuffer());
  const starts = (...bytes) => bytes.every((byte, i) => head[i] === byte);
  if (starts(0x89, 0x50, 0x4e, 0x47)) {
    const [depth, colourType] = head.subarray(24, 26);
    const [chunks] = new TextDecoder("latin1").decode(head).split("IDAT");
    // with alpha: the service takes the pixels as they are stored
    return depth === 16 || (colourType & 4) > 0 || chunks.includes("tRNS");
  }
  const isWebp = starts(0x52, 0x49, 0x46, 0x46) && String.fromCharCode(...head.subarray(8, 12)) === "WEBP";
  return !(starts(0xff, 0xd8) || isWebp);
}

/**
 * The list and its queue. Events: "list" (added, removed, another is shown), "item" (detail: one that changed),
 * "result" (detail: an item that has one for the page that is shown).
 */
export class Files extends EventTarget {
  /** @type {Item[]} */
  list = [];
  /** @type {Item|null} */
  current = null;
  tta = false;
  model = null; // as /health has it; null: nothing is sent
  #working = new Map(); // item -> AbortController
  #drawn = Promise.resolve(); // thumbnails, one after the other

  constructor(api) {
    super();
    this.api = api;
  }

  add(files) {
    const added = files.map((file) => new Item(file, this.api));
    this.list.push(...added);
    if (added.length) this.show(added[0]);
    for (const item of added.slice(1)) this.#drawn = this.#drawn.then(() => this.#thumbnail(item));
  }

  show(item) {
    this.current = item;
    this.#emit("list");
    this.#pump();
  }

  /** The image so many places further on. */
  step(by) {
    const next = this.list[this.list.indexOf(this.current) + by];
    if (next) this.show(next);
  }

  remove(item) {
    const at = this.list.indexOf(item);
    this.#working.get(item)?.abort();
    this.#working.delete(item);
    this.list.splice(at, 1);
    this.show(item === this.current ? (this.list[at] ?? this.list.at(-1) ?? null) : this.current);
  }

  turnTo(item, page) {
    item.page = Math.min(Math.max(1, page), item.pages);
    this.#restart(item);
  }

  retry(item) {
    this.#restart(item);
  }

  /** Tries those again that there was no key for. */
  retryWithKey() {
    for (const item of this.list) if (item.state === "failed" && item.error.status === 401) this.#restart(item);
  }

  /** All answers are asked for again: the model or the way of predicting has changed. */
  again({ forget }) {
    for (const item of this.list) {
      if (forget) item.results.clear();
      this.#reset(item);
    }
    this.#pump();
  }

  /** Tells the queue which model answers now; it waits while there is none. */
  set served(model) {
    this.model = model;
    this.#pump();
  }

  /** Asks again for an answer that cannot be shown. */
  redo(item) {
    item.results.clear();
    this.#restart(item);
  }

  resultOf(item) {
    return item?.results.get(this.#key(item)) ?? null;
  }

  #key(item) {
    return `${item.page}/${this.tta}`;
  }

  #restart(item) {
    this.#reset(item);
    this.#pump();
  }

  #reset(item) {
    this.#working.get(item)?.abort();
    this.#working.delete(item);
    item.error = null;
    item.losses = 0;
    this.#become(item, this.resultOf(item) ? "done" : "waiting");
  }

  #pump() {
    if (!this.model) return;
    const isDue = (item) => item?.state === "waiting" && !this.#working.has(item);
    const due = [this.current, ...this.list].filter(isDue);
    if (due.length && this.#working.size < 2) {
      this.#segment(due[0]);
      this.#pump();
    } else if (isDue(this.current)) this.#segment(this.current); // what one looks at goes before the rest
  }

  async #segment(item) {
    const ended = new AbortController();
    const key = this.#key(item);
    this.#working.set(item, ended);
    const how = {
      signal: ended.signal,
      urgency: item === this.current ? SHOWN : ASIDE,
      onStart: () => ((item.since = performance.now()), this.#become(item, "working")),
      onWait: () => this.#become(item, "waiting"),
    };
    try {
      const output = this.model.binary ? "probability" : "mask";
      const options = { output, page: item.page, tta: this.tta || null };
      const { blob, headers } = await this.api.post("segment", item.file, options, how);
      item.results.set(key, {
        page: item.page,
        modelId: headers.get("X-Model-Id"),
        tta: this.tta,
        probability: output === "probability" ? blob : null,
        mask: output === "mask" ? blob : null,
        likeliest: null,
        warning: headers.get("X-Input-Warning") ?? "",
        timing: headers.get("Server-Timing") ?? "",
        exact: new Map(),
      });
      item.losses = 0;
      this.#leave(item, ended, "done");
      this.#emit("result", item);
    } catch (error) {
      if (ended.signal.aborted) return;
      if (!(error instanceof Trouble)) console.error(error);
      item.error = error;
      // an upload that the service cuts off looks like no answer: only one that fails again is the image's fault
      const isLost = error instanceof Unreachable && (item.losses += 1) < 3;
      if (isLost) this.model = null; // until the service is found again
      if (isLost) this.#emit("lost");
      this.#leave(item, ended, isLost ? "waiting" : "failed");
    }
    this.#pump();
  }

  #leave(item, ended, state) {
    if (this.#working.get(item) === ended) this.#working.delete(item);
    this.#become(item, state);
  }

  #become(item, state) {
    item.state = state;
    this.#emit("item", item);
  }

  async #thumbnail(item) {
    if (!this.list.includes(item)) return; // removed while it waited
    try {
      const bitmap = await item.bitmap(1, { urgency: ASIDE });
      item.drawThumbnail(bitmap);
      bitmap.close();
      this.#emit("item", item);
    } catch {
      // its request to /segment says what is wrong
    }
  }

  #emit(type, detail = null) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
