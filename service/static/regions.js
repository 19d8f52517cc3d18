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

/** @returns {Int32Array[]} areas of the regions of group 1, 2, ... */
function count({ width, height, data }, table, minArea) {
  let parent = new Int32Array(4096); // by label, of which each run has one
  let area = new Int32Array(4096);
  let group = new Uint8Array(4096);
  let labels = 0;

  const root = (i) => {
    while (parent[i] !== i) i = parent[i] = parent[parent[i]];
    return i;
  };
  // runs of a row, and of the row above: where each begins and ends, and its label
  const most = width;
  let [starts, ends, ids] = [0, 0, 0].map(() => new Int32Array(most));
  let [startsAbove, endsAbove, idsAbove] = [0, 0, 0].map(() => new Int32Array(most));
  let nAbove = 0;

  for (let y = 0; y < height; y++) {
    const row = data.subarray(y * width, (y + 1) * width);
    let n = 0;
    let above = 0; // the first run above that does not end before this run begins
    for (let x = 0; x < width; ) {
      const g = table[row[x]];
      const start = x++;
      while (x < width && table[row[x]] === g) x++;
      if (!g) continue;
      while (above < nAbove && endsAbove[above] <= start) above++;
      let label = -1;
      for (let i = above; i < nAbove && startsAbove[i] < x; i++) {
        if (group[idsAbove[i]] !== g) continue;
        const other = root(idsAbove[i]);
        if (label < 0) label = other;
        else if (label !== other) {
          const [first, second] = label < other ? [label, other] : [other, label];
          parent[second] = first;
          area[first] += area[second];
          label = first;
        }
      }
      if (label < 0) {
        if (labels === parent.length) [parent, area, group] = [parent, area, group].map(doubled);
        label = labels++;
        parent[label] = label;
        area[label] = 0;
        group[label] = g;
      }
      area[label] += x - start;
      starts[n] = start;
      ends[n] = x;
      ids[n++] = label;
    }
    [starts, startsAbove, ends, endsAbove, ids, idsAbove] = [startsAbove, starts, endsAbove, ends, idsAbove, ids];
    nAbove = n;
  }

  const found = Array.from({ length: Math.max(...table) }, () => []);
  for (let i = 0; i < labels; i++) {
    if (parent[i] === i && area[i] >= minArea) found[group[i] - 1].push(area[i]);
  }
  return found.map((areas) => Int32Array.from(areas).sort());
}

function doubled(array) {
  const larger = new array.constructor(2 * array.length);
  larger.set(array);
  return larger;
}
