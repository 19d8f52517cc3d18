/** `output=table`: its rows, and what they say together. */

/** CSV (RFC 4180) -> an object for each row. */
export function rows(text) {
  const lines = [[]];
  // a field, quoted or not, and what ends it
  for (const [, quoted, bare, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/g)) {
    lines.at(-1).push(quoted?.replaceAll('""', '"') ?? bare);
    if (end !== ",") lines.push([]);
  }
  const [names, ...rest] = lines.filter((line) => line.length > 1);
  return rest.map((line) => Object.fromEntries(names.map((name, i) => [name, line[i]])));
}

/** Areas of objects, ascending -> their number, median and range. */
export function summary(areas) {
  const n = areas.length;
  const median = n ? (areas[(n - 1) >> 1] + areas[n >> 1]) / 2 : null;
  return { n, median, least: areas[0] ?? null, most: areas[n - 1] ?? null };
}

const ascending = (areas) => Float64Array.from(areas).sort();

/**
 * A table -> areas in µm² where the file says its pixel size, else in pixels; `pixels`: their sum in pixels;
 * `byClass`: number of objects by name of the class.
 */
export function measure(text) {
  const objects = rows(text);
  const pixels = objects.map((row) => Number(row.area_px));
  const known = objects.length > 0 && objects.every((row) => row.area_um2 !== "");
  const byClass = new Map();
  for (const row of objects) byClass.set(row.class, (byClass.get(row.class) ?? 0) + 1);
  return {
    areas: ascending(known ? objects.map((row) => Number(row.area_um2)) : pixels),
    unit: known ? "µm²" : "px",
    pixelArea: known ? Number(objects[0].area_um2) / pixels[0] : 1,
    pixels: pixels.reduce((a, b) => a + b, 0),
    byClass,
  };
}
