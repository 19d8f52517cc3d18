/** Answers as files: their kinds and names, one file or a ZIP of all. */

import { Trouble } from "./api.js";
import { Zip } from "./zip.js";

export const KINDS = [
  { name: "mask", title: "Mask", hint: "the marked pixels as an image" },
  { name: "overlay", title: "Overlay", hint: "outlines on image" },
  { name: "labels", title: "Labels", hint: "objects, numbered" },
  { name: "table", title: "Table", hint: "areas, places: CSV" },
  { name: "probability", title: "Probability", hint: "0 to 255" },
  { name: "rois", title: "ImageJ ROIs", hint: "for ROI Manager" },
  { name: "geojson", title: "GeoJSON", hint: "for QuPath" },
];

/** The model has changed since what is on the screen was computed. */
export class ModelChanged extends Trouble {
  constructor() {
    super("A newer model has taken over, and what you see is the older one’s", "Segment again, then save.");
  }
}

/** The name that the service gives an answer. */
export function fileName(headers, file, kind) {
  const said = headers.get("Content-Disposition") ?? "";
  const [, utf8] = said.match(/filename\*=UTF-8''([^;]+)/i) ?? [];
  if (utf8) return decodeURIComponent(utf8);
  const [, plain] = said.match(/filename="((?:[^"\\]|\\.)*)"/i) ?? [];
  if (plain) return plain.replace(/\\(.)/g, "$1");
  return `${file.name}_${kind}`;
}

export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/**
 * One kind of answer about a whole file, by the model of what is shown of it. Raises Trouble.
 * @returns {Promise<{name: string, blob: Blob}>}
 */
export async function answer(api, item, kind, settings, modelId, how) {
  const { blob, headers } = await api.post("segment", item.file, { output: kind, ...settings }, how);
  if (modelId && headers.get("X-Model-Id") !== modelId) throw new ModelChanged();
  return { name: fileName(headers, item.file, kind), blob };
}

/**
 * Kinds of all items as a ZIP.
 * @param {(done: number, of: number) => void} onProgress
 * @returns {Promise<{blob: Blob|null, failures: string[]}>}
 */
export async function archive(api, items, kinds, settings, modelIdOf, onProgress, signal) {
  const zip = new Zip();
  const failures = new Map(); // image and reason -> kinds
  const jobs = items.flatMap((item) => kinds.map((kind) => ({ item, kind, saved: null, error: null })));
  const waiting = [...jobs];
  const work = async () => {
    for (let job = waiting.shift(); job; job = waiting.shift()) {
      const { item, kind } = job;
      try {
        job.saved = await answer(api, item, kind, settings, modelIdOf(item), { signal });
      } catch (error) {
        signal.throwIfAborted();
        job.error = error;
      }
      onProgress(jobs.filter(({ saved, error }) => saved || error).length, jobs.length);
    }
  };
  await Promise.all([work(), work()]);
  for (const { item, kind, saved, error } of jobs) { // in their order, which numbers images of the same name
    try {
      if (error) throw error;
      await zip.add(saved.name, saved.blob);
    } catch (error) {
      const reason = `${item.name}: ${[error.title, error.message].filter(Boolean).join(": ")}`;
      failures.set(reason, [...(failures.get(reason) ?? []), kind]);
    }
  }
  const lines = [...failures].map(([reason, kinds]) => `${reason} (${kinds.join(", ")})`);
  if (lines.length && !zip.isEmpty) await zip.add("not saved.txt", new Blob(lines.map((line) => `${line}\r\n`)));
  return { blob: zip.isEmpty ? null : zip.blob(), failures: lines };
}
