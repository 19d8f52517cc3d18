/** In place of a group: a pixel of several, which is an edge itself. */
export const MIXED = 255;

/**
 * Where groups of pixels meet: pixels whose square of `2 * line + 1` pixels around them shows several groups, or leaves
 * the picture. Works on four pixels, the bytes of a word, at once, and takes as long whatever they show.
 */
export class Edges {
  #line;
  #width; // words of a row
  #along;
  #either;

  /** @param {number} stride pixels of a row; the last of each is 0 */
  constructor(stride, height, line) {
    this.#line = line;
    this.#width = stride / 4;
    this.#along = new Int32Array(this.#width * height + Math.ceil(line / 2) + 1);
    this.#either = new Int32Array(this.#width * (height + 2 * line)).fill(-1); // what is beside the picture differs
  }

  /**
   * @param {Uint8Array} groups of all pixels, with its whole buffer
   * @returns {Int32Array} its bytes are not 0 at edges. Valid until the next call
   */
  find(groups) {
    const words = new Int32Array(groups.buffer);
    const [width, size, line] = [this.#width, words.length, this.#line];
    const [along, either] = [this.#along, this.#either];
    const skip = (line - 1) >> 2;
    const bits = 8 * ((line - 1) & 3);
    let [before, carried] = [0, 0];
    for (let i = 0; i < size; i++) {
      const word = words[i];
      const mixed = word & ((word & 0x7f7f7f7f) + 0x01010101) & 0x80808080; // bytes that are MIXED
      const differs = (word ^ ((word << 8) | (before >>> 24))) | mixed; // from the pixel before
      along[i + skip] = (differs << bits) | carried; // `line - 1` pixels to the right: `spread` goes left
      carried = differs >>> 1 >>> (31 - bits);
      before = word;
    }
    spread(along, 2 * line, 1);

    const first = (line - 1) * width;
    for (let i = width; i < size; i++) either[first + i] = along[i] | (words[i] ^ words[i - width]); // or the row above
    spread(either, 2 * line, 4 * width);
    for (let i = line * width; i < size; i++) either[i] |= along[i - line * width];
    return either.subarray(0, size);
  }
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
