/**
 * A worker that counts regions: connected pixels of one group, where pixels that share a side are connected, as for
 * the objects of unet/outputs/labels.py. Union-find over the runs of each row.
 *
 * In: `{width, height, data}`, the pixels to count in from now on, or `{table, minArea}`, the group of each of their
 * 256 values, 0 for background, and the area of the smallest region that counts.
 * Out, for each of the latter: `{areas}`, the regions' areas in pixels, ascending, of group 1, 2, ...
 */

let pixels = null;

addEventListener("message", ({ data: message }) => {
  if (message.data) {
    pixels = message;
    return;
  }
  const areas = count(pixels, message.table, message.minArea);
  postMessage({ areas }, areas.map((each) => each.buffer));
});

function count({ width, height, data }, table, minArea) {
  const labels = new Labels();
  let [above, row] = [new Runs(width), new Runs(width)];
  for (let y = 0; y < height; y++) {
    row.read(data.subarray(y * width, (y + 1) * width), table);
    row.connect(above, labels);
    [above, row] = [row, above];
  }
  return labels.areas(Math.max(...table), minArea);
}

/** The runs of one row that are not background. */
class Runs {
  constructor(width) {
    this.n = 0;
    this.start = new Int32Array(width);
    this.end = new Int32Array(width);
    this.group = new Uint8Array(width);
    this.label = new Int32Array(width);
  }

  read(row, table) {
    const { start, end, group } = this;
    let n = 0;
    for (let x = 0; x < row.length; ) {
      const g = table[row[x]];
      const first = x++;
      while (x < row.length && table[row[x]] === g) x++;
      if (!g) continue;
      start[n] = first;
      end[n] = x;
      group[n++] = g;
    }
    this.n = n;
  }

  /** Gives each run the label of those above that it touches, or a new one. */
  connect(above, labels) {
    let i = 0; // the first run above that does not end before this one begins
    for (let k = 0; k < this.n; k++) {
      const [start, end, group] = [this.start[k], this.end[k], this.group[k]];
      let label = -1;
      while (i < above.n && above.end[i] <= start) i++;
      for (let j = i; j < above.n && above.start[j] < end; j++) {
        if (above.group[j] !== group) continue;
        label = label < 0 ? labels.root(above.label[j]) : labels.join(label, above.label[j]);
      }
      this.label[k] = label < 0 ? labels.add(group) : label;
      labels.area[this.label[k]] += end - start;
    }
  }
}

/** Regions, or parts of them that have not met yet: each label leads to the root of its region. */
class Labels {
  n = 0;
  parent = new Int32Array(4096);
  area = new Int32Array(4096); // of roots
  group = new Uint8Array(4096);

  add(group) {
    if (this.n === this.parent.length) {
      for (const name of ["parent", "area", "group"]) this[name] = doubled(this[name]);
    }
    this.parent[this.n] = this.n;
    this.group[this.n] = group;
    return this.n++;
  }

  root(label) {
    const { parent } = this;
    while (parent[label] !== label) label = parent[label] = parent[parent[label]];
    return label;
  }

  /** The root of both from now on. */
  join(one, other) {
    const [first, second] = [this.root(one), this.root(other)];
    if (first === second) return first;
    this.parent[second] = first;
    this.area[first] += this.area[second];
    return first;
  }

  /** @returns {Int32Array[]} */
  areas(groups, minArea) {
    const found = Array.from({ length: groups }, () => []);
    for (let i = 0; i < this.n; i++) {
      if (this.parent[i] === i && this.area[i] >= minArea) found[this.group[i] - 1].push(this.area[i]);
    }
    return found.map((areas) => Int32Array.from(areas).sort());
  }
}

function doubled(array) {
  const larger = new array.constructor(2 * array.length);
  larger.set(array);
  return larger;
}
