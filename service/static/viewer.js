/**
 * An image and its mask on a canvas: zoom, pan, threshold, classes, regions. Knows pixels, nothing of the service.
 *
 * The canvas has the size of the screen's part, whatever the image's: any image works that the browser can decode.
 */

import { listen } from "./gestures.js";
import { Mask } from "./mask.js";
import { View } from "./view.js";

const LINE = 2; // width of outlines in CSS pixels
const DARK = 64; // the brightest channel of a colour whose lines would not show: they are white, as in overlays
const WHITE = [255, 255, 255];

/**
 * Events, each a CustomEvent:
 * "pointer": `{x, y, probability, value}` of the pixel under the pointer: column and row from 0, probability 0..1 or
 * null, class value or null; null when the pointer leaves the image.
 * "regions": `{count, areas, byClass}` when counted: areas in pixels, ascending, and the same for each class value of
 * several, `{count, areas}`. While a slider moves, only the newest threshold waits to be counted.
 * "view": `{scale}`, pixels of the screen per pixel of the image.
 */
export class Viewer extends EventTarget {
  #canvas;
  #context;
  #background = document.createElement("canvas"); // the image as the view shows it
  #overlay = document.createElement("canvas"); // the mask as the view shows it
  #place = null; // of the overlay on screen
  #screen = { width: 0, height: 0 }; // the canvas's own pixels
  #view = null; // of the image, or of the mask where there is no image
  #image = null;
  #mask = null;
  #classes = null; // null: a probability of the foreground
  #likeliest = null;
  #hidden = new Set();
  #threshold = 0.5;
  #opacity = 0.5;
  #style = "fill";
  #colour = [255, 138, 0];
  #ratio = 1; // pixels of the screen per CSS pixel
  #pointer = null; // in CSS pixels
  #reported = null;
  #stale = new Set();
  #regions = new Regions((areas) => this.#counted(areas));

  /** @param {HTMLCanvasElement} canvas sized by the page's style; what it shows follows its size */
  constructor(canvas) {
    super();
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    const observer = new ResizeObserver(([entry]) => this.#resize(entry));
    try {
      observer.observe(canvas, { box: "device-pixel-content-box" });
    } catch {
      observer.observe(canvas); // Safari
    }
    listen(canvas, {
      pan: (dx, dy) => this.panBy(dx, dy),
      zoom: (factor, x, y) => this.#zoomAt(factor, x, y),
      toggle: (x, y) => (this.#view.isFitted ? this.#zoomAt(Math.max(1 / this.#view.scale, 4), x, y) : this.fit()),
      hover: (x, y) => {
        this.#pointer = x === null ? null : { x, y };
        this.#redraw("pointer");
      },
      active: () => this.#view !== null,
    });
  }

  /**
   * The image, below the mask if that is of the same size.
   * @param {ImageBitmap | null} bitmap is the viewer's from now on, which closes it; null: nothing at all
   */
  showImage(bitmap) {
    this.#image?.close();
    this.#image = bitmap;
    if (!sameSize(this.#mask, bitmap)) this.#show(null, null);
    this.#measure(bitmap);
    this.#redraw("image");
  }

  /** @param {{width: number, height: number, data: Uint8Array} | null} probability 255 times that of the foreground */
  showProbability(probability) {
    this.#show(probability, null);
  }

  /**
   * @param {{width: number, height: number, data: Uint8Array}} map class values
   * @param {{value: number, colour: number[]}[]} classes the background first
   */
  showClasses(map, classes) {
    this.#show(map, classes);
  }

  /** 255 times the probability of each pixel's class, for the pointer. @param {{data: Uint8Array} | null} probability */
  set likeliest(probability) {
    this.#likeliest = probability;
    this.#redraw("pointer");
  }

  /** A pixel is foreground where its probability is above the threshold, 0..1. */
  set threshold(threshold) {
    this.#threshold = threshold;
    this.#legendChanged();
    this.#redraw("regions");
  }

  /** Smallest region that is counted, in pixels. */
  set minArea(pixels) {
    this.#regions.minArea = pixels;
    this.#redraw("regions");
  }

  set opacity(opacity) {
    this.#opacity = opacity;
    this.#redraw("screen");
  }

  /** @param {"fill" | "outline"} style */
  set style(style) {
    this.#style = style;
    this.#legendChanged();
  }

  /** Red, green and blue of the foreground, where classes do not have their own. */
  set colour(colour) {
    this.#colour = colour;
    this.#legendChanged();
  }

  setVisible(value, visible) {
    if (visible) this.#hidden.delete(value);
    else this.#hidden.add(value);
    this.#legendChanged();
  }

  fit() {
    if (this.#view) this.#look(View.fitted(this.#view.image, this.#screen));
  }

  /** One pixel of the screen per pixel of the image. */
  actualSize() {
    if (this.#view) this.#look(this.#view.zoomed(1 / this.#view.wanted));
  }

  zoomBy(factor) {
    if (this.#view) this.#look(this.#view.zoomed(factor));
  }

  /** Moves the image by CSS pixels. */
  panBy(dx, dy) {
    if (this.#view) this.#look(this.#view.moved(dx * this.#ratio, dy * this.#ratio));
  }

  #zoomAt(factor, x, y) {
    this.#look(this.#view.zoomed(factor, x * this.#ratio, y * this.#ratio));
  }

  #show(pixels, classes) {
    if (pixels && this.#image && !sameSize(pixels, this.#image)) {
      const { width, height } = this.#image;
      throw new Error(`expected a mask of ${width} x ${height} pixels, got ${pixels.width} x ${pixels.height}`);
    }
    this.#mask = pixels && new Mask(pixels, classes === null);
    this.#classes = classes;
    this.#likeliest = null;
    if (!this.#image) this.#measure(pixels);
    this.#regions.load(pixels);
    this.#legendChanged();
    this.#redraw("regions");
  }

  #measure(image) {
    if (!image) this.#view = null;
    else if (!sameSize(this.#view?.image, image)) {
      this.#look(View.fitted({ width: image.width, height: image.height }, this.#screen));
    }
  }

  #resize(entry) {
    const [box] = entry.devicePixelContentBoxSize ?? [];
    const width = pixelsOfScreen(entry.contentRect.width, box?.inlineSize);
    const height = pixelsOfScreen(entry.contentRect.height, box?.blockSize);
    for (const canvas of [this.#canvas, this.#background]) Object.assign(canvas, { width, height });
    this.#ratio = width / entry.contentRect.width || devicePixelRatio;
    this.#screen = { width, height };
    if (this.#view) this.#look(this.#view.on(this.#screen));
  }

  #look(view) {
    const isRescaled = view.scale !== this.#view?.scale;
    this.#view = view;
    this.#redraw("image", "mask", "pointer");
    if (isRescaled) this.#send("view", { scale: view.scale });
  }

  #legendChanged() {
    if (this.#mask) {
      const colours = this.#classes ? this.#classes.map(({ colour }) => colour) : [WHITE, this.#colour];
      const bright = this.#style === "fill" ? colours : colours.map((c) => (Math.max(...c) < DARK ? WHITE : c));
      this.#mask.setLegend(this.#table(this.#hidden), bright);
    }
    this.#redraw("mask", "pointer");
  }

  /** The group of each pixel value: of a probability 1 above the threshold; of a class its index, 0 if hidden. */
  #table(hidden) {
    if (!this.#classes) return Uint8Array.from({ length: 256 }, (_, value) => (value > 255 * this.#threshold ? 1 : 0));
    const table = new Uint8Array(256);
    this.#classes.forEach(({ value }, i) => (table[value] = hidden.has(value) ? 0 : i));
    return table;
  }

  #counted(groups) {
    const byClass = new Map();
    for (const [i, { value }] of (this.#classes ?? []).slice(1).entries()) {
      const areas = Array.from(groups[i] ?? []);
      byClass.set(value, { count: areas.length, areas });
    }
    const areas = Array.from(groups.length === 1 ? groups[0] : merged(groups));
    this.#send("regions", { count: areas.length, areas, byClass });
  }

  /** Does in the next frame what is named: "image", "mask", "screen", "pointer", "regions". */
  #redraw(...stale) {
    if (!this.#stale.size) requestAnimationFrame(() => this.#draw());
    for (const each of stale) this.#stale.add(each);
  }

  #draw() {
    const stale = this.#stale;
    this.#stale = new Set();
    if (this.#screen.width && this.#screen.height) {
      if (stale.has("image")) this.#drawImage();
      if (stale.has("mask")) this.#drawMask();
      if (stale.has("image") || stale.has("mask") || stale.has("screen")) this.#drawScreen();
    }
    if (stale.has("pointer")) this.#report();
    if (stale.has("regions") && this.#mask) this.#regions.count(this.#table(new Set())); // last: drawing goes first
  }

  #drawScreen() {
    const context = this.#context;
    context.clearRect(0, 0, this.#screen.width, this.#screen.height);
    context.globalAlpha = 1;
    if (this.#image) context.drawImage(this.#background, 0, 0);
    context.globalAlpha = this.#opacity;
    if (this.#place) context.drawImage(this.#overlay, this.#place.x, this.#place.y);
  }

  #drawImage() {
    if (!this.#image) return;
    const { image, screen, scale, x, y } = this.#view;
    const context = this.#background.getContext("2d");
    context.clearRect(0, 0, screen.width, screen.height);
    context.imageSmoothingEnabled = scale < 1;
    context.imageSmoothingQuality = "high";
    const [left, right] = part(x, screen.width, image.width, scale);
    const [top, bottom] = part(y, screen.height, image.height, scale);
    const [width, height] = [right - left, bottom - top];
    const target = [x + left * scale, y + top * scale, width * scale, height * scale];
    context.drawImage(this.#image, left, top, width, height, ...target);
  }

  #drawMask() {
    const line = Math.max(1, Math.round(LINE * this.#ratio));
    const painted = this.#mask?.paint(this.#view, line, this.#style === "outline");
    this.#place = painted;
    if (!painted) return;
    const { width, height } = painted.picture;
    if (!sameSize(this.#overlay, painted.picture)) Object.assign(this.#overlay, { width, height });
    this.#overlay.getContext("2d").putImageData(painted.picture, 0, 0);
  }

  #report() {
    const detail = this.#pointer && this.#view && this.#under(this.#pointer);
    if (JSON.stringify(detail) === JSON.stringify(this.#reported)) return;
    this.#reported = detail;
    this.#send("pointer", detail);
  }

  #under(pointer) {
    const pixel = this.#view.pixelAt(pointer.x * this.#ratio, pointer.y * this.#ratio);
    if (!pixel || !this.#mask) return pixel && { ...pixel, probability: null, value: null };
    const at = pixel.y * this.#mask.width + pixel.x;
    const value = this.#mask.data[at];
    if (!this.#classes) return { ...pixel, probability: value / 255, value: null };
    return { ...pixel, probability: this.#likeliest ? this.#likeliest.data[at] / 255 : null, value };
  }

  #send(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/**
 * The first and the last pixel of the image, along one axis, that are drawn: those on screen where they are enlarged,
 * because coordinates far from it are not exact; all where they are reduced, because neighbours matter.
 */
function part(origin, room, size, scale) {
  if (scale < 1) return [0, size];
  return [Math.max(0, Math.floor(-origin / scale)), Math.min(size, Math.ceil((room - origin) / scale))];
}

/** CSS pixels in pixels of the screen; `exact` is not, where a browser's tools imitate another screen. */
function pixelsOfScreen(length, exact) {
  const pixels = length * devicePixelRatio;
  return Math.abs(exact - pixels) < 1 ? exact : Math.round(pixels);
}

const sameSize = (a, b) => a?.width === b?.width && a?.height === b?.height;

function merged(groups) {
  const all = new Int32Array(groups.reduce((sum, areas) => sum + areas.length, 0));
  let at = 0;
  for (const areas of groups) {
    all.set(areas, at);
    at += areas.length;
  }
  return all.sort();
}

/** Counts regions in a worker, one request at a time; of those that wait, the newest is next. */
class Regions {
  minArea = 1;
  #worker = new Worker(new URL("regions.js", import.meta.url), { type: "module" });
  #busy = false;
  #next = null;
  #outdated = false; // what is being counted belongs to pixels that are no longer shown

  constructor(counted) {
    this.#worker.addEventListener("message", ({ data: { areas } }) => {
      this.#busy = false;
      if (!this.#outdated) counted(areas);
      this.#outdated = false;
      if (this.#next) this.count(this.#next);
    });
  }

  load(pixels) {
    this.#next = null;
    this.#outdated = this.#busy;
    if (!pixels) return;
    const { width, height } = pixels;
    const data = pixels.data.slice();
    this.#worker.postMessage({ width, height, data }, [data.buffer]);
  }

  count(table) {
    this.#next = this.#busy ? table : null;
    if (this.#busy) return;
    this.#busy = true;
    this.#worker.postMessage({ table, minArea: this.minArea });
  }
}
