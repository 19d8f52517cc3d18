/**
 * The mask as the screen shows it: pixels of an answer -> RGBA at the screen's resolution, filled or outlined.
 *
 * A pixel value belongs to a group: 0 shows nothing, 1, 2, ... each a colour. Where the screen is finer than the image,
 * a pixel of the screen takes the group at its centre; where it is coarser, the groups of all pixels whose centres it
 * holds, so that nothing thin is lost. What a threshold does not change is computed once for each view.
 */

const MIXED = 255; // in place of a group: a pixel of the screen that shows several

export class Mask {
  #levels; // minima and maxima of 1, 2 x 2, 4 x 4, ... pixels
  #ordered;
  #groups;
  #colours; // RGB by group
  #words; // RGBA by group
  #view;
  #columns; // where the pixels of the screen begin in the image
  #rows;
  #low; // smallest and largest value in each pixel of the screen
  #high;
  #shown; // group of each pixel of the screen, or MIXED
  #picture;

  /**
   * @param {{width: number, height: number, data: Uint8Array}} pixels
   * @param {boolean} ordered values between two of one group are of this group, too
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
   * @param {number[][]} colours red, green and blue of each group, from 0
   */
  setLegend(groups, colours) {
    this.#groups = groups;
    this.#colours = colours;
    this.#words = Uint32Array.from(colours, (colour, group) => (group ? rgba(...colour, 255) : 0));
  }

  /**
   * The part of the mask that is on screen, and `margin` pixels around it.
   * @param {{scale: number, x: number, y: number, width: number, height: number}} view the same object as long as
   * nothing in it changes: pixels of the screen per pixel of the image, where the image's corner is, size of the screen
   * @param {number} line width of outlines in pixels of the screen; 0: filled
   * @returns {{picture: ImageData, x: number, y: number} | null} and its place on screen
   */
  paint(view, line, margin) {
    if (view !== this.#view) this.#look(view, margin);
    const [width, height] = [this.#columns.stride, this.#rows.count];
    if (!this.#columns.count || !height) return null;
    if (this.#picture?.width !== width || this.#picture?.height !== height) this.#picture = new ImageData(width, height);
    if (view.scale < 1) this.#poolGroups();
    else this.#copyGroups();
    if (line) this.#drawLines(line);
    else this.#fill();
    return { picture: this.#picture, x: view.x + this.#columns.first, y: view.y + this.#rows.first };
  }

  #look(view, margin) {
    this.#view = view;
    this.#columns = span(view.x, view.width, this.width, view.scale, margin);
    this.#rows = span(view.y, view.height, this.height, view.scale, margin);
    this.#shown = new Uint8Array(this.#columns.stride * this.#rows.count);
    if (view.scale < 1) this.#pool(this.#level(Math.floor(Math.log2(1 / view.scale))));
  }

  /** Smallest and largest value in each pixel of the screen, and perhaps in a little more. */
  #pool({ shift, width, low, high }) {
    const { starts: columns, count, stride } = this.#columns;
    const rows = this.#rows.starts;
    this.#low = new Uint8Array(this.#shown.length);
    this.#high = new Uint8Array(this.#shown.length);
    for (let j = 0, p = 0; j < this.#rows.count; j++, p = j * stride) {
      const [top, bottom] = [rows[j] >> shift, (rows[j + 1] - 1) >> shift];
      for (let i = 0; i < count; i++, p++) {
        const [left, right] = [columns[i] >> shift, (columns[i + 1] - 1) >> shift];
        let [least, most] = [255, 0];
        for (let y = top; y <= bottom; y++) {
          for (let at = y * width + left; at <= y * width + right; at++) {
            if (low[at] < least) least = low[at];
            if (high[at] > most) most = high[at];
          }
        }
        this.#low[p] = least;
        this.#high[p] = most;
      }
    }
  }

  #level(shift) {
    while (this.#levels.length <= shift) this.#levels.push(halved(this.#levels.at(-1)));
    return { ...this.#levels[shift], shift };
  }

  #poolGroups() {
    const [groups, low, high, shown] = [this.#groups, this.#low, this.#high, this.#shown];
    const { count, stride } = this.#columns;
    for (let j = 0, p = 0; j < this.#rows.count; j++, p = j * stride) {
      for (let i = 0; i < count; i++, p++) {
        const group = groups[low[p]];
        const same = low[p] === high[p] || (this.#ordered && group === groups[high[p]]);
        shown[p] = same ? group : this.#groupOf(i, j);
      }
    }
  }

  #copyGroups() {
    const [groups, data, shown, rows] = [this.#groups, this.data, this.#shown, this.#rows.starts];
    const { starts: columns, count, stride } = this.#columns;
    for (let j = 0, p = 0; j < this.#rows.count; j++, p = j * stride) {
      if (j && rows[j] === rows[j - 1]) {
        shown.copyWithin(p, p - stride, p);
        continue;
      }
      const from = rows[j] * this.width;
      for (let i = 0; i < count; i++) shown[p + i] = groups[data[from + columns[i]]];
    }
  }

  #groupOf(i, j) {
    const [columns, rows] = [this.#columns.starts, this.#rows.starts];
    const group = this.#groups[this.data[rows[j] * this.width + columns[i]]];
    for (let y = rows[j]; y < rows[j + 1]; y++) {
      for (let x = columns[i]; x < columns[i + 1]; x++) {
        if (this.#groups[this.data[y * this.width + x]] !== group) return MIXED;
      }
    }
    return group;
  }

  /** The average colour of a pixel of the screen, as opaque as the share of its pixels that show one. */
  #mixed(i, j) {
    const [columns, rows] = [this.#columns.starts, this.#rows.starts];
    let [r, g, b, n, all] = [0, 0, 0, 0, 0];
    for (let y = rows[j]; y < rows[j + 1]; y++) {
      for (let x = columns[i]; x < columns[i + 1]; x++, all++) {
        const group = this.#groups[this.data[y * this.width + x]];
        if (!group) continue;
        const colour = this.#colours[group];
        r += colour[0];
        g += colour[1];
        b += colour[2];
        n++;
      }
    }
    return rgba(...[r / n, g / n, b / n, (255 * n) / all].map(Math.round));
  }

  #fill() {
    const [shown, words] = [this.#shown, this.#words];
    const pixels = new Uint32Array(this.#picture.data.buffer);
    const stride = this.#columns.stride;
    for (let p = 0; p < pixels.length; p++) {
      const group = shown[p];
      pixels[p] = group === MIXED ? this.#mixed(p % stride, Math.floor(p / stride)) : words[group];
    }
  }

  /** Lines inside of regions: pixels from which another group is at most `line` pixels away, in a square. */
  #drawLines(line) {
    const [shown, words] = [this.#shown, this.#words];
    const pixels = new Uint32Array(this.#picture.data.buffer).fill(0);
    const stride = this.#columns.stride;
    const edges = this.#edges(line);
    const edgesOf4 = new Uint32Array(edges.buffer);
    for (let word = 0; word < edgesOf4.length; word++) {
      if (!edgesOf4[word]) continue;
      for (let p = 4 * word; p < 4 * word + 4; p++) {
        if (!edges[p] || !shown[p]) continue;
        pixels[p] = shown[p] === MIXED ? this.#mixed(p % stride, Math.floor(p / stride)) : words[shown[p]];
      }
    }
  }

  /** Not 0 where the square of `2 * line + 1` pixels around a pixel has several groups; 4 pixels at a time. */
  #edges(line) {
    const { stride } = this.#columns;
    const height = this.#rows.count;
    const along = new Uint32Array(this.#edgesAlongRows(line).buffer);
    const shown = new Uint32Array(this.#shown.buffer);
    const words = stride / 4;
    const either = along.slice(); // along the row or towards the row above
    for (let i = words; i < either.length; i++) either[i] |= shown[i] ^ shown[i - words];
    const edges = new Uint32Array(along.length).fill(0xffffffff, 0); // the image's edge is one
    for (let y = line; y < height - line; y++) {
      const at = y * words;
      for (let i = at; i < at + words; i++) {
        let edge = along[i - line * words];
        for (let k = i - (line - 1) * words; k <= i + line * words; k += words) edge |= either[k];
        edges[i] = edge;
      }
    }
    return new Uint8Array(edges.buffer);
  }

  #edgesAlongRows(line) {
    const [shown, rows] = [this.#shown, this.#rows.starts];
    const { count, stride } = this.#columns;
    const repeats = this.#view.scale >= 1;
    const edges = new Uint8Array(shown.length);
    for (let j = 0, p = 0; j < this.#rows.count; j++, p += stride) {
      if (repeats && j && rows[j] === rows[j - 1]) {
        edges.copyWithin(p, p - stride, p);
        continue;
      }
      const end = p + count;
      edges.fill(1, p, Math.min(p + line, end)).fill(1, Math.max(p, end - line), end);
      for (let i = p + 1; i < end; i++) {
        if (shown[i] === shown[i - 1] && shown[i] !== MIXED) continue;
        edges.fill(1, Math.max(p, i - line), Math.min(i + line, end));
      }
    }
    return edges;
  }
}

/**
 * The pixels of the screen along one axis that show the image: the first, from the image's corner, how many, that
 * rounded up to whole words, and at which pixel of the image each begins.
 */
function span(origin, room, size, scale, margin) {
  const shown = scale < 1 ? Math.floor((size - 0.5) * scale) + 1 : Math.ceil(size * scale - 0.5);
  const first = Math.max(0, -origin - margin);
  const count = Math.max(0, Math.min(shown, room - origin + margin) - first);
  const start = (u) => (scale < 1 ? Math.ceil(u / scale - 0.5) : Math.floor((u + 0.5) / scale));
  const starts = Int32Array.from({ length: count + 1 }, (_, i) => Math.min(start(first + i), size));
  return { first, count, stride: Math.ceil(count / 4) * 4, starts };
}

/** Minima and maxima of 2 x 2 pixels. */
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
const rgba = (r, g, b, a) => ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;
