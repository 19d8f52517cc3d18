/** A ZIP file of stored entries (PKWARE APPNOTE 4.3), made in the browser. */

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** CRC-32 of IEEE 802.3, as in PNG. */
export function crc32(bytes) {
  let crc = ~0;
  for (let i = 0; i < bytes.length; i++) crc = TABLE[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

const MAX_BYTES = 0xf0000000; // what is above needs ZIP64, as do 65,535 files
const MAX_FILES = 65_000;
const UTF8 = 0x0800; // flag: names are UTF-8
const DIRECTORY_ENTRY = 0x02014b50;

/** 2-byte fields are numbers, 4-byte fields are [number]. */
function record(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((size, field) => size + (Array.isArray(field) ? 4 : 2), 0)));
  let at = 0;
  for (const field of fields) {
    if (Array.isArray(field)) view.setUint32(at, field[0], true);
    else view.setUint16(at, field, true);
    at += Array.isArray(field) ? 4 : 2;
  }
  return view.buffer;
}

export class Zip {
  #parts = [];
  #directory = [];
  #size = 0;
  #names = new Set();

  /** Adds a file; a name that is taken gets a number. @param {string} name @param {Blob} blob */
  async add(name, blob) {
    const crc = crc32(new Uint8Array(await blob.arrayBuffer()));
    if (this.#size + blob.size > MAX_BYTES) throw new Error("the ZIP would be larger than 4 GB");
    if (this.#names.size >= MAX_FILES) throw new Error("the ZIP would have more than 65,000 files");
    const path = new TextEncoder().encode(this.#free(name));
    const now = new Date();
    const time = (now.getHours() << 11) | (now.getMinutes() << 5) | (now.getSeconds() >> 1);
    const date = ((now.getFullYear() - 1980) << 9) | ((now.getMonth() + 1) << 5) | now.getDate();
    const common = [20, UTF8, 0, time, date, [crc], [blob.size], [blob.size], path.length, 0];
    this.#directory.push(record([DIRECTORY_ENTRY], 20, ...common, 0, 0, 0, [0], [this.#size]), path);
    const head = record([0x04034b50], ...common);
    this.#parts.push(head, path, blob);
    this.#size += head.byteLength + path.length + blob.size;
  }

  get isEmpty() {
    return this.#parts.length === 0;
  }

  blob() {
    const directory = new Blob(this.#directory);
    const n = this.#directory.length / 2;
    const end = record([0x06054b50], 0, 0, n, n, [directory.size], [this.#size], 0);
    return new Blob([...this.#parts, directory, end], { type: "application/zip" });
  }

  #free(name) {
    const [, stem, extension] = name.match(/^(.+?)(\.[^.]*)?$/);
    let free = name;
    for (let i = 2; this.#names.has(free.toLowerCase()); i++) free = `${stem} (${i})${extension ?? ""}`;
    this.#names.add(free.toLowerCase());
    return free;
  }
}
