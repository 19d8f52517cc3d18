/** Decoding of the service's PNG answers: the exact values, which a canvas does not promise to give back. */

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const HEADER = 33; // bytes of the signature and of IHDR, the first chunk

/**
 * The pixels of an 8-bit grey PNG, row by row.
 * @param {Blob} blob
 * @returns {Promise<{width: number, height: number, data: Uint8Array}>}
 */
export async function decodePng(blob) {
  const file = await blob.arrayBuffer();
  const bytes = new Uint8Array(file);
  if (bytes.length < HEADER || SIGNATURE.some((byte, i) => bytes[i] !== byte) || name(bytes, 12) !== "IHDR") {
    throw new Error(`expected a PNG file, got ${bytes.length} bytes of another kind`);
  }
  const view = new DataView(file);
  const [width, height] = [view.getUint32(16), view.getUint32(20)];
  const [depth, colour, , , interlace] = bytes.subarray(24, 29);
  if (depth !== 8 || colour !== 0 || interlace !== 0) {
    const found = `bit depth ${depth}, colour type ${colour}, interlace ${interlace}`;
    throw new Error(`expected a PNG with 8-bit grey pixels (bit depth 8, colour type 0, interlace 0), got ${found}`);
  }
  const filtered = await inflate(packed(bytes, view));
  if (filtered.length !== height * (width + 1)) {
    throw new Error(`expected ${height} rows of ${width} pixels in the PNG, got ${filtered.length} bytes`);
  }
  return { width, height, data: unfilter(filtered, width, height) };
}

const name = (bytes, at) => String.fromCharCode(...bytes.subarray(at, at + 4));

/** The contents of all IDAT chunks. */
function packed(bytes, view) {
  const parts = [];
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    if (name(bytes, at + 4) === "IDAT") parts.push(bytes.subarray(at + 8, at + 8 + length));
    at += length + 12;
  }
  return new Blob(parts);
}

async function inflate(blob) {
  try {
    const stream = blob.stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch (error) {
    throw new Error(`the PNG is damaged or incomplete: ${error.message}`);
  }
}

/** Undoes the filter of each row, which its first byte names (PNG specification, chapter 9). */
function unfilter(filtered, width, height) {
  const data = new Uint8Array(width * height);
  let above = new Uint8Array(width);
  for (let y = 0, from = 0; y < height; y++, from += width + 1) {
    const filter = FILTERS[filtered[from]];
    if (!filter) throw new Error(`the PNG is damaged: filter ${filtered[from]} in row ${y}`);
    const row = data.subarray(y * width, (y + 1) * width);
    filter(row, filtered.subarray(from + 1, from + 1 + width), above);
    above = row;
  }
  return data;
}

const FILTERS = [
  (row, from) => row.set(from), // none
  function left(row, from) {
    for (let x = 0, a = 0; x < row.length; x++) a = row[x] = (from[x] + a) & 255;
  },
  function up(row, from, above) {
    for (let x = 0; x < row.length; x++) row[x] = from[x] + above[x];
  },
  function average(row, from, above) {
    for (let x = 0; x < row.length; x++) row[x] = from[x] + (((x ? row[x - 1] : 0) + above[x]) >> 1);
  },
  function paeth(row, from, above) {
    for (let x = 0, a = 0, c = 0; x < row.length; x++) {
      const b = above[x];
      const [pa, pb, pc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
      a = row[x] = (from[x] + (pa <= pb && pa <= pc ? a : pb <= pc ? b : c)) & 255;
      c = b;
    }
  },
];
