/**
 * An image and its mask on a canvas: zoom, pan, threshold, classes, regions. Knows pixels, nothing of the service.
 *
 * The canvas has the size of the screen's part, whatever the image's: any image works that the browser can decode.
 */

import { listen } from "./gestures.js";
import { Mask, extent } from "./mask.js";

const LINE = 2; // width of outlines in CSS pixels
const LARGEST = 64; // pixels of the screen per pixel of the image
const STEPS = 63; // scales from 1 on are multiples of 1 / STEPS. As this is odd, no pixel of the screen has its centre
// where two of the image meet, and image and mask, drawn in different ways, agree on which one it shows
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
  #image = null;
  #size = null; // of the image, or of the mask where there is none
  #view = { wanted: 1, scale: 1, left: 0, top: 0, x: 0, y: 0, width: 0, height: 0 }; // replaced, never changed
  #fitted = true;
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
      zoom: (factor, x, y) => this.#zoom(factor, x * this.#ratio, y * this.#ratio),
      toggle: (x, y) => this.#toggle(x * this.#ratio, y * this.#ratio),
      hover: (x, y) => {
        this.#pointer = x === null ? null : { x, y };
        this.#redraw("pointer");
      },
      active: () => this.#size !== null,
    });
  }

  /** The image, below the mask if that is of the same size. @param {ImageBitmap | null} bitmap null: nothing at all */
  showImage(bitmap) {
    this.#image = bitmap;
    if (!sameSize(this.#mask, bitmap)) this.#show(null, null, null);
    this.#measure(bitmap);
    this.#redraw("image");
  }

  /** @param {{width: number, height: number, data: Uint8Array} | null} probability 255 times that of the foreground */
  showProbability(probability) {
    this.#show(probability, null, null);
  }

  /**
   * @param {{width: number, height: number, data: Uint8Array}} map class values
   * @param {{value: number, colour: number[]}[]} classes the background first
   * @param {{data: Uint8Array} | null} likeliest 255 times the probability of each pixel's class
   */
  showClasses(map, classes, likeliest = null) {
    this.#show(map, classes, likeliest);
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

  /** The whole image, as large as it gets; small pixels are enlarged to squares of one size. */
  fit() {
    this.#fitted = true;
    const scale = this.#fittingScale();
    const steps = scale < 4 ? STEPS : 1;
    this.#look(scale < 1 ? scale : Math.floor(scale * steps) / steps, 0, 0);
  }

  /** One pixel of the screen per pixel of the image. */
  actualSize() {
    this.#zoom(1 / this.#view.wanted, this.#view.width / 2, this.#view.height / 2);
  }

  zoomBy(factor) {
    this.#zoom(factor, this.#view.width / 2, this.#view.height / 2);
  }

  /** Moves the image by CSS pixels. */
  panBy(dx, dy) {
    const { wanted, left, top } = this.#view;
    this.#look(wanted, left + dx * this.#ratio, top + dy * this.#ratio);
  }

  #show(pixels, classes, likeliest) {
    if (pixels && this.#image && !sameSize(pixels, this.#image)) {
      const { width, height } = this.#image;
      throw new Error(`expected a mask of ${width} x ${height} pixels, got ${pixels.width} x ${pixels.height}`);
    }
    this.#mask = pixels && new Mask(pixels, classes === null);
    this.#classes = classes;
    this.#likeliest = likeliest;
    if (!this.#image) this.#measure(pixels);
    this.#regions.load(pixels);
    this.#legendChanged();
    this.#redraw("regions");
  }

  #measure(size) {
    const before = this.#size;
    this.#size = size && { width: size.width, height: size.height };
    if (size && !sameSize(before, size)) this.fit();
  }

  #resize(entry) {
    const [box] = entry.devicePixelContentBoxSize ?? [];
    const width = pixelsOfScreen(entry.contentRect.width, box?.inlineSize);
    const height = pixelsOfScreen(entry.contentRect.height, box?.blockSize);
    const before = this.#view;
    for (const canvas of [this.#canvas, this.#background]) Object.assign(canvas, { width, height });
    this.#ratio = width / entry.contentRect.width || devicePixelRatio;
    this.#view = { ...before, width, height };
    if (this.#fitted) this.fit();
    else this.#look(before.wanted, before.left + (width - before.width) / 2, before.top + (height - before.height) / 2);
  }

  #fittingScale() {
    if (!this.#size) return 1;
    const { width, height } = this.#view;
    return Math.min(width / this.#size.width, height / this.#size.height, LARGEST) || 1;
  }

  #zoom(factor, x, y) {
    if (!this.#size) return;
    const { wanted: before, scale, left, top } = this.#view;
    const wanted = Math.min(Math.max(before * factor, Math.min(this.#fittingScale(), 1)), LARGEST);
    const ratio = stepped(wanted) / scale;
    this.#fitted = false;
    this.#look(wanted, x - (x - left) * ratio, y - (y - top) * ratio);
  }

  #toggle(x, y) {
    if (this.#fitted) this.#zoom(Math.max(1 / this.#view.scale, 4), x, y);
    else this.fit();
  }

  /** Shows the image at about this scale, with its corner at the whole pixel of the screen next to that place. */
  #look(wanted, left, top) {
    if (!this.#size) return;
    const { width, height } = this.#view;
    const scale = stepped(wanted);
    const fit = this.#fittingScale();
    const across = inside(left, width, this.#size.width * scale, this.#size.width * fit);
    const down = inside(top, height, this.#size.height * scale, this.#size.height * fit);
    const rescaled = scale !== this.#view.scale;
    const [x, y] = [Math.round(across), Math.round(down)];
    this.#view = { wanted, scale, left: across, top: down, x, y, width, height };
    this.#redraw("image", "mask", "pointer");
    if (rescaled) this.#send("view", { scale });
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
    if (this.#view.width && this.#view.height) {
      if (stale.has("image")) this.#drawImage();
      if (stale.has("mask")) this.#drawMask();
      if (stale.has("image") || stale.has("mask") || stale.has("screen")) this.#drawScreen();
    }
    if (stale.has("pointer")) this.#report();
    if (stale.has("regions") && this.#mask) this.#regions.count(this.#table(new Set())); // last: drawing goes first
  }

  #drawScreen() {
    const context = this.#context;
    context.clearRect(0, 0, this.#view.width, this.#view.height);
    context.globalAlpha = 1;
    if (this.#image) context.drawImage(this.#background, 0, 0);
    context.globalAlpha = this.#opacity;
    if (this.#place) context.drawImage(this.#overlay, this.#place.x, this.#place.y);
  }

  #drawImage() {
    const { scale, x, y, width, height } = this.#view;
    const context = this.#background.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (!this.#image) return;
    context.imageSmoothingEnabled = scale < 1;
    context.imageSmoothingQuality = "high";
    const [left, right] = part(x, width, this.#size.width, scale);
    const [top, bottom] = part(y, height, this.#size.height, scale);
    const [across, down] = [right - left, bottom - top];
    context.drawImage(
      this.#image, left, top, across, down, x + left * scale, y + top * scale, across * scale, down * scale);
    // a last pixel of the screen of which the image has less than half
    context.clearRect(x + extent(this.#size.width, scale), 0, width, height);
    context.clearRect(0, y + extent(this.#size.height, scale), width, height);
  }

  #drawMask() {
    const line = Math.max(1, Math.round(LINE * this.#ratio));
    const painted = this.#mask?.paint(this.#view, this.#style === "outline" ? line : 0, line);
    this.#place = painted;
    if (!painted) return;
    const { width, height } = painted.picture;
    if (this.#overlay.width !== width || this.#overlay.height !== height) Object.assign(this.#overlay, { width, height });
    this.#overlay.getContext("2d").putImageData(painted.picture, 0, 0);
  }

  #report() {
    const detail = this.#pointer && this.#size && this.#under(this.#pointer);
    if (JSON.stringify(detail) === JSON.stringify(this.#reported)) return;
    this.#reported = detail;
    this.#send("pointer", detail);
  }

  #under(pointer) {
    const x = Math.floor((pointer.x * this.#ratio - this.#view.x) / this.#view.scale);
    const y = Math.floor((pointer.y * this.#ratio - this.#view.y) / this.#view.scale);
    if (x < 0 || y < 0 || x >= this.#size.width || y >= this.#size.height) return null;
    if (!this.#mask) return { x, y, probability: null, value: null };
    const at = y * this.#mask.width + x;
    const value = this.#mask.data[at];
    if (!this.#classes) return { x, y, probability: value / 255, value: null };
    return { x, y, probability: this.#likeliest ? this.#likeliest.data[at] / 255 : null, value };
  }

  #send(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/**
 * Where an axis of the image begins on screen: as wished, but no further than that a point of the image is in the
 * middle, and in the middle of the screen where all of it fits.
 */
function inside(start, room, length, fitting) {
  const centred = (room - length) / 2;
  const slack = Math.max(0, Math.min(length / 2, length - fitting));
  return Math.min(Math.max(start, centred - slack), centred + slack);
}

const stepped = (scale) => (scale < 0.999999 ? scale : Math.round(scale * STEPS) / STEPS);

/**
 * The first and the last pixel of the image, along one axis, that are drawn: those on screen where they are enlarged, as
 * coordinates far from it are not exact; all where they are reduced, as neighbours matter.
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
