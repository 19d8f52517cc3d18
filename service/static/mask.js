/**
 * The mask as the screen shows it: pixels of an answer -> RGBA at the screen's resolution, filled or outlined.
 *
 * A pixel value belongs to a group: 0 shows nothing, 1, 2, ... each a colour. Where the screen is finer than the image,
 * a pixel of the screen takes the group at its centre; where it is coarser, the average of all pixels whose centres it
 * holds, so that nothing thin is lost. What a threshold does not change is computed once for each view.
 */

import { Edges, MIXED } from "./edges.js";

export class Mask {
  #levels; // smallest and largest values of 1, 2 x 2, 4 x 4, ... pixels
  #ordered;
  #groups; // by pixel value
  #colours; // red, green and blue by group
  #view;
  #columns; // pixels of the screen, see `span`
  #rows;
  #ranges; // of the values in each pixel of the screen: smallest + 256 * largest
  #shown; // group of each pixel of the screen, or MIXED
  #mixed; // room for the places of MIXED pixels
  #edges;
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
   * The part of the mask that is on screen, and `line` pixels around it.
   * @param {import("./view.js").View} view
   * @param {number} line width of outlines in pixels of the screen
   * @param {boolean} isOutlined instead of filled
   * @returns {{picture: ImageData, x: number, y: number} | null} and its place on screen
   */
  paint(view, line, isOutlined) {
    if (view !== this.#view) this.#look(view, line);
    if (!this.#shown.length) return null;
    const mixed = view.scale < 1 ? this.#findCoarse() : this.#findFine();
    if (isOutlined) this.#drawLines(line);
    else this.#fill();
    this.#drawAverages(mixed);
    return { picture: this.#picture, x: view.x + this.#columns.first, y: view.y + this.#rows.first };
  }

  #look(view, line) {
    this.#view = view;
    this.#columns = span(view.x, view.screen.width, this.width, view.scale, line);
    this.#rows = span(view.y, view.screen.height, this.height, view.scale, line);
    const [width, height] = [this.#columns.stride, this.#rows.count];
    this.#shown = new Uint8Array(width * height);
    this.#edges = null;
    if (!this.#shown.length) return;
    if (this.#picture?.width !== width || this.#picture.height !== height) this.#picture = new ImageData(width, height);
    if (view.scale >= 1) return;
    const shift = Math.max(0, Math.floor(Math.log2(1 / view.scale)) - 1);
    while (this.#levels.length <= shift) this.#levels.push(halved(this.#levels.at(-1)));
    this.#ranges = ranges(this.#levels[shift], shift, this.#columns, this.#rows);
    this.#mixed = new Int32Array(this.#shown.length + 1);
  }

  #findFine() {
    const [groups, data, shown, rows] = [this.#groups, this.data, this.#shown, this.#rows.starts];
    const { starts: columns, count, stride } = this.#columns;
    for (let j = 0, p = 0; p < shown.length; j++, p += stride) {
      if (j && rows[j] === rows[j - 1]) {
        shown.copyWithin(p, p - stride, p);
        continue;
      }
      const row = rows[j] * this.width;
      for (let i = 0; i < count; i++) shown[p + i] = groups[data[row + columns[i]]];
    }
    return [];
  }

  #findCoarse() {
    const [ranges, shown, mixed] = [this.#ranges, this.#shown, this.#mixed];
    const groups = this.#groupsOfRanges();
    let n = 0;
    for (let p = 0; p < shown.length; p++) {
      const group = groups[ranges[p]];
      shown[p] = group;
      mixed[n] = p; // without a branch, which would often be predicted wrongly
      n += (group + 1) >> 8;
    }
    return mixed.subarray(0, n);
  }

  #groupsOfRanges() {
    const found = new Uint8Array(65536);
    for (let low = 0; low < 256; low++) {
      for (let high = low; high < 256; high++) {
        const [first, last] = [this.#groups[low], this.#groups[high]];
        found[low + 256 * high] = low === high || (this.#ordered && first === last) ? first : MIXED;
      }
    }
    return found;
  }

  get #words() {
    const words = new Int32Array(256);
    for (let group = 1; group < this.#colours.length; group++) words[group] = rgba(...this.#colours[group], 255);
    return words;
  }

  #fill() {
    const [words, shown, pixels] = [this.#words, this.#shown, new Int32Array(this.#picture.data.buffer)];
    for (let p = 0; p < shown.length; p++) pixels[p] = words[shown[p]];
  }

  /** Lines inside of regions: pixels from which another group is at most `line` pixels away, in a square. */
  #drawLines(line) {
    const width = this.#view.scale < 1 ? Math.max(1, line - 1) : line; // the pixels that regions share are drawn, too
    this.#edges ??= new Edges(this.#columns.stride, this.#rows.count, width);
    const edges = this.#edges.find(this.#shown); // of 4 pixels each
    const [words, shown, pixels] = [this.#words, this.#shown, new Int32Array(this.#picture.data.buffer)];
    pixels.fill(0);
    for (let i = 0; i < edges.length; i++) {
      for (let p = 4 * i, edge = edges[i]; edge; p++, edge >>>= 8) if (edge & 255) pixels[p] = words[shown[p]];
    }
  }

  #drawAverages(mixed) {
    const [shown, pixels] = [this.#shown, new Int32Array(this.#picture.data.buffer)];
    const { stride } = this.#columns;
    const average = this.#ordered ? this.#share(this.#words[1]) : this.#blend();
    for (const p of mixed) {
      const j = Math.floor(p / stride);
      pixels[p] = average(p - j * stride, j);
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
      const alpha = (255 * n) / ((right - left) * (bottom - top)) + 0.5;
      return n && ((alpha << 24) | colour);
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
}

/**
 * The pixels of the screen along one axis that show the image: the first, from the image's corner, how many, the
 * whole words they take with one spare, and at which pixel of the image each begins.
 */
function span(origin, room, size, scale, margin) {
  const extent = scale < 1 ? Math.floor((size - 0.5) * scale) + 1 : Math.ceil(size * scale - 0.5);
  const first = Math.max(0, -origin - margin);
  const count = Math.max(0, Math.min(extent, room - origin + margin) - first);
  const start = (u) => (scale < 1 ? Math.ceil(u / scale - 0.5) : Math.floor((u + 0.5) / scale));
  const starts = Int32Array.from({ length: count + 1 }, (_, i) => Math.min(start(first + i), size));
  return { first, count, stride: count && 4 * Math.ceil((count + 1) / 4), starts };
}

/** Smallest + 256 * largest value in each pixel of the screen, and perhaps in a little of its neighbours. */
function ranges({ width, low, high }, shift, columns, rows) {
  const found = new Uint16Array(columns.stride * rows.count);
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
      found[p] = least + 256 * most;
    }
  }
  return found;
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
  return (Math.round(alpha) << 24) | (Math.round(blue) << 16) | (Math.round(green) << 8) | Math.round(red);
}
