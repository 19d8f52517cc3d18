/**
 * The mask as the screen shows it: pixels of an answer -> RGBA at the screen's resolution, filled or outlined.
 *
 * A pixel value belongs to a group: 0 shows nothing, 1, 2, ... each a colour. Where the screen is finer than the image,
 * a pixel of the screen takes the group at its centre; where it is coarser, the average of all pixels whose centres it
 * holds, so that nothing thin is lost. What a threshold does not change is computed once for each view.
 */

import { extent } from "./view.js";

const MIXED = 255; // in place of a group: a pixel of the screen that shows several

export class Mask {
  #levels; // smallest and largest values of 1, 2 x 2, 4 x 4, ... pixels
  #ordered;
  #groups; // by pixel value
  #colours; // red, green and blue by group
  #view;
  #columns; // pixels of the screen, see `span`
  #rows;
  #low; // smallest and largest value in each pixel of the screen
  #high;
  #shown; // group of each pixel of the screen, or MIXED
  #picture;

  /**
   * @param {{width: number, height: number, data: Uint8Array}} pixels
   * @param {boolean} ordered there is one group, of the values above some threshold
   */
  constructor({ width, height, data }, ordered) {
    this.width = width;
    this.height = height;
    this.data = data;
    this.#ordered = ordered;
    this.#levels = [{ width, height, low: data, high: data }];
  }

  /**
   * @param {Uint8Array} groups of the 256 values
   * @param {number[][]} colours of the groups, from 0
   */
  setLegend(groups, colours) {
    this.#groups = groups;
    this.#colours = colours;
  }

  /**
   * The part of the mask that is on screen, and `margin` pixels around it.
   * @param {import("./view.js").View} view
   * @param {number} line width of outlines in pixels of the screen, not above `margin`; 0: filled
   * @returns {{picture: ImageData, x: number, y: number} | null} and its place on screen
   */
  paint(view, line, margin) {
    if (view !== this.#view) this.#look(view, margin);
    if (!this.#shown.length) return null;
    if (view.scale < 1) this.#fillCoarse();
    else this.#fillFine();
    if (line) this.#clearInsides(line);
    return { picture: this.#picture, x: view.x + this.#columns.first, y: view.y + this.#rows.first };
  }

  #look(view, margin) {
    this.#view = view;
    this.#columns = span(view.x, view.screen.width, this.width, view.scale, margin);
    this.#rows = span(view.y, view.screen.height, this.height, view.scale, margin);
    const [width, height] = [this.#columns.stride, this.#rows.count];
    this.#shown = new Uint8Array(width * height);
    if (!this.#shown.length) return;
    if (this.#picture?.width !== width || this.#picture.height !== height) this.#picture = new ImageData(width, height);
    if (view.scale >= 1) return;
    const shift = Math.floor(Math.log2(1 / view.scale));
    while (this.#levels.length <= shift) this.#levels.push(halved(this.#levels.at(-1)));
    [this.#low, this.#high] = pooled(this.#levels[shift], shift, this.#columns, this.#rows);
  }

  get #words() {
    return Uint32Array.from(this.#colours, (colour, group) => (group ? rgba(...colour, 255) : 0));
  }

  #fillFine() {
    const [groups, words, data, shown, rows] = [this.#groups, this.#words, this.data, this.#shown, this.#rows.starts];
    const { starts: columns, count, stride } = this.#columns;
    const pixels = new Uint32Array(this.#picture.data.buffer);
    for (let j = 0, p = 0; p < shown.length; j++, p += stride) {
      if (j && rows[j] === rows[j - 1]) {
        shown.copyWithin(p, p - stride, p);
        pixels.copyWithin(p, p - stride, p);
        continue;
      }
      const row = rows[j] * this.width;
      for (let i = 0; i < count; i++) {
        const group = groups[data[row + columns[i]]];
        shown[p + i] = group;
        pixels[p + i] = words[group];
      }
    }
  }

  #fillCoarse() {
    const [groups, words, low, high, shown] = [this.#groups, this.#words, this.#low, this.#high, this.#shown];
    const { count, stride } = this.#columns;
    const pixels = new Uint32Array(this.#picture.data.buffer);
    const average = this.#ordered ? this.#share(words[1]) : this.#blend();
    for (let j = 0, p = 0; p < shown.length; j++, p = j * stride) {
      for (let i = 0; i < count; i++, p++) {
        const group = groups[low[p]];
        if (low[p] === high[p] || (this.#ordered && group === groups[high[p]])) {
          shown[p] = group;
          pixels[p] = words[group];
        } else {
          const word = average(i, j);
          pixels[p] = word;
          shown[p] = word >>> 24 ? MIXED : 0;
        }
      }
    }
  }

  /** A function that gives the colour of column i and row j of the screen, as opaque as the group's share of it. */
  #share(word) {
    const [groups, data, width] = [this.#groups, this.data, this.width];
    const [columns, rows] = [this.#columns.starts, this.#rows.starts];
    const colour = word & 0xffffff;
    return (i, j) => {
      const [left, right, top, bottom] = [columns[i], columns[i + 1], rows[j], rows[j + 1]];
      let n = 0;
      for (let y = top; y < bottom; y++) {
        for (let at = y * width + left, end = y * width + right; at < end; at++) n += groups[data[at]];
      }
      return ((Math.round((255 * n) / ((right - left) * (bottom - top))) << 24) | colour) >>> 0;
    };
  }

  /** The same for several groups: the average of their colours. */
  #blend() {
    const [groups, data, width, colours] = [this.#groups, this.data, this.width, this.#colours];
    const [columns, rows] = [this.#columns.starts, this.#rows.starts];
    return (i, j) => {
      let [red, green, blue, n] = [0, 0, 0, 0];
      for (let y = rows[j]; y < rows[j + 1]; y++) {
        for (let x = columns[i]; x < columns[i + 1]; x++) {
          const group = groups[data[y * width + x]];
          if (!group) continue;
          const colour = colours[group];
          red += colour[0];
          green += colour[1];
          blue += colour[2];
          n++;
        }
      }
      const all = (rows[j + 1] - rows[j]) * (columns[i + 1] - columns[i]);
      return n ? rgba(red / n, green / n, blue / n, (255 * n) / all) : 0;
    };
  }

  /** Leaves lines inside of regions: pixels from which another group is at most `line` pixels away, in a square. */
  #clearInsides(line) {
    const edges = edgesOf(this.#shown, this.#columns.stride, line);
    const pixels = new Uint32Array(this.#picture.data.buffer);
    const pixelsBy2 = new Float64Array(pixels.buffer);
    for (let i = 0; i < edges.length; i++) {
      let edge = edges[i];
      if (!edge) pixelsBy2[2 * i] = pixelsBy2[2 * i + 1] = 0;
      else for (let p = 4 * i; p < 4 * i + 4; p++, edge >>>= 8) if (!(edge & 255)) pixels[p] = 0;
    }
  }
}

/**
 * Where the square of `2 * line + 1` pixels around a pixel of the screen shows several groups, or leaves the picture:
 * its byte is not 0. Works on four pixels at once, and takes as long whatever they show.
 * @param {Uint8Array} shown rows of groups; the last of each row is 0
 */
function edgesOf(shown, stride, line) {
  const groups = new Int32Array(shown.buffer);
  const [width, size] = [stride / 4, groups.length];
  const lead = Math.ceil((line - 1) / 4); // words, so that what is moved to the left below stays in the array
  const along = new Int32Array(lead + size + Math.ceil(line / 2) + 1);
  for (let i = 0, before = 0; i < size; i++) {
    const word = groups[i];
    const mixed = word & ((word & 0x7f7f7f7f) + 0x01010101) & 0x80808080; // bytes that are MIXED
    along[lead + i] = (word ^ ((word << 8) | (before >>> 24))) | mixed; // unlike the pixel before
    before = word;
  }
  spread(along, 2 * line, 1);
  join(along, 4 * lead - (line - 1), 0);

  const either = new Int32Array(size + 2 * line * width).fill(-1); // along the row, or unlike the row above
  const first = (line - 1) * width;
  for (let i = width; i < size; i++) either[first + i] = along[i] | (groups[i] ^ groups[i - width]);
  spread(either, 2 * line, stride);
  for (let i = line * width; i < size; i++) either[i] |= along[i - line * width];
  return either.subarray(0, size);
}

/** Each byte joined with those 1, 2, ... n - 1 steps after it. */
function spread(words, n, step) {
  for (let done = 1; done < n; done *= 2) join(words, Math.min(done, n - done) * step, -1);
}

/** The bits of each word in `kept`, and all of the four bytes that begin so many bytes after its own. */
function join(words, bytes, kept) {
  const skip = bytes >> 2;
  const bits = 8 * (bytes & 3);
  const end = words.length - skip - 1;
  if (!bits) for (let i = 0; i < end; i++) words[i] = (words[i] & kept) | words[i + skip];
  else for (let i = 0; i < end; i++) {
    words[i] = (words[i] & kept) | (words[i + skip] >>> bits) | (words[i + skip + 1] << (32 - bits));
  }
}

/**
 * The pixels of the screen along one axis that show the image: the first, from the image's corner, how many, the
 * whole words they take with one spare, and at which pixel of the image each begins.
 */
function span(origin, room, size, scale, margin) {
  const first = Math.max(0, -origin - margin);
  const count = Math.max(0, Math.min(extent(size, scale), room - origin + margin) - first);
  const start = (u) => (scale < 1 ? Math.ceil(u / scale - 0.5) : Math.floor((u + 0.5) / scale));
  const starts = Int32Array.from({ length: count + 1 }, (_, i) => Math.min(start(first + i), size));
  return { first, count, stride: count && 4 * Math.ceil((count + 1) / 4), starts };
}

/** Smallest and largest value in each pixel of the screen, and perhaps in a little more. */
function pooled({ width, low, high }, shift, columns, rows) {
  const smallest = new Uint8Array(columns.stride * rows.count);
  const largest = new Uint8Array(smallest.length);
  const left = columns.starts.map((start) => start >> shift);
  const right = columns.starts.subarray(1).map((start) => (start - 1) >> shift);
  for (let j = 0, p = 0; j < rows.count; j++, p = j * columns.stride) {
    const [top, bottom] = [rows.starts[j] >> shift, (rows.starts[j + 1] - 1) >> shift];
    for (let i = 0; i < columns.count; i++, p++) {
      let least = 255;
      let most = 0;
      for (let y = top; y <= bottom; y++) {
        for (let at = y * width + left[i], end = y * width + right[i]; at <= end; at++) {
          if (low[at] < least) least = low[at];
          if (high[at] > most) most = high[at];
        }
      }
      smallest[p] = least;
      largest[p] = most;
    }
  }
  return [smallest, largest];
}

/** Smallest and largest values of 2 x 2 pixels. */
function halved({ width, height, low, high }) {
  const half = { width: Math.ceil(width / 2), height: Math.ceil(height / 2) };
  half.low = new Uint8Array(half.width * half.height);
  half.high = new Uint8Array(half.width * half.height);
  for (let y = 0, p = 0; y < height; y += 2) {
    const below = y + 1 < height ? width : 0;
    for (let x = 0; x < width; x += 2, p++) {
      const at = y * width + x;
      const right = x + 1 < width ? 1 : 0;
      half.low[p] = Math.min(low[at], low[at + right], low[at + below], low[at + below + right]);
      half.high[p] = Math.max(high[at], high[at + right], high[at + below], high[at + below + right]);
    }
  }
  return half;
}

/** RGBA as ImageData has it, in one word of a little-endian machine: every one that runs these browsers. */
function rgba(red, green, blue, alpha) {
  return ((Math.round(alpha) << 24) | (Math.round(blue) << 16) | (Math.round(green) << 8) | Math.round(red)) >>> 0;
}
