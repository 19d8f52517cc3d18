/** How images come in: dropped anywhere, pasted, chosen. */

import { $ } from "./dom.js";

/** @param {(files: File[]) => void} onFiles */
export function install(onFiles) {
  const chooser = $("chooser");
  chooser.addEventListener("change", () => {
    onFiles([...chooser.files]);
    chooser.value = ""; // the same file may be chosen again
  });
  for (const id of ["add", "choose"]) $(id).addEventListener("click", () => chooser.click());

  addEventListener("paste", (event) => {
    if (event.target.matches?.("input, textarea")) return;
    onFiles([...event.clipboardData.files]);
  });

  let depth = 0; // of elements that the pointer has entered with files
  const hasFiles = (event) => event.dataTransfer.types.includes("Files");
  const veil = (change) => {
    depth = Math.max(0, change);
    $("veil").hidden = depth === 0;
  };
  addEventListener("dragenter", (event) => hasFiles(event) && veil(depth + 1));
  addEventListener("dragleave", (event) => hasFiles(event) && veil(depth - 1));
  addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  addEventListener("drop", async (event) => {
    event.preventDefault();
    veil(0);
    onFiles(await dropped(event.dataTransfer));
  });
}

/** The files of a drop, also those in folders, by name. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = (await Promise.all(entries.map(inside))).flat();
  const visible = found.filter((file) => !file.name.startsWith("."));
  return visible.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
}

async function inside(entry) {
  if (entry.isFile) {
    const unreadable = new File([], entry.name); // which the service refuses, by its name
    return [await new Promise((resolve) => entry.file(resolve, () => resolve(unreadable)))];
  }
  const reader = entry.createReader();
  const all = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at most
    if (!some.length) return (await Promise.all(all.map(inside))).flat();
    all.push(...some);
  }
}
