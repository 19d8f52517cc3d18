/** Dialogs: the key, and the ZIP of all images. */

import { archive, download, KINDS } from "./save.js";
import { count } from "./words.js";

const $ = (id) => document.getElementById(id);

/** Asks for the API key. @returns {Promise<string|null>} null: not now */
export function askForKey(wrong) {
  const dialog = $("key-dialog");
  $("key-wrong").hidden = !wrong;
  $("key").value = "";
  $("key").setAttribute("aria-invalid", String(wrong));
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const done = () => resolve(dialog.returnValue === "ok" ? $("key").value : null);
    dialog.addEventListener("close", done, { once: true });
  });
}

/** The dialog that saves all images. `about` tells, when it opens, of `items`, `settings`, `words`, `modelIdOf`. */
export function installZip(api, about) {
  const dialog = $("zip-dialog");
  let running = null;

  for (const { name, title } of KINDS) {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", name: "kind", value: name });
    box.checked = name === "mask" || name === "table";
    const label = document.createElement("label");
    label.append(box, ` ${title}`);
    $("zip-kinds").append(label);
  }
  const chosen = () => [...$("zip-kinds").querySelectorAll(":checked")].map((box) => box.value);
  const ready = () => ($("zip-start").disabled = Boolean(running) || !chosen().length);
  $("zip-kinds").addEventListener("change", ready);
  dialog.addEventListener("close", () => running?.abort());

  $("save-all").addEventListener("click", () => {
    const { items, words } = about();
    $("zip-text").textContent = `${count(items.length, "image")}${words}`;
    $("zip-progress").hidden = $("zip-problems").hidden = true;
    $("zip-cancel").textContent = "Cancel";
    ready();
    dialog.showModal();
  });

  $("zip-start").addEventListener("click", async () => {
    const { items, settings, modelIdOf } = about();
    const controller = (running = new AbortController());
    const progress = (done, of) => {
      $("zip-meter").setAttribute("aria-valuenow", Math.round((100 * done) / of));
      $("zip-meter").firstElementChild.style.width = `${(100 * done) / of}%`;
      $("zip-state").textContent = done < of ? `${done} of ${of} files` : "";
    };
    ready();
    $("zip-kinds").disabled = true;
    $("zip-problems").hidden = true;
    $("zip-progress").hidden = false;
    progress(0, items.length * chosen().length);
    try {
      const { blob, failures } = await archive(api, items, chosen(), settings, modelIdOf, progress, controller.signal);
      if (blob) download(blob, "segmented.zip");
      $("zip-state").textContent = blob ? "Saved as segmented.zip" : "Nothing was saved";
      $("zip-problems").hidden = !failures.length;
      const lines = failures.map((text) => Object.assign(document.createElement("li"), { textContent: text }));
      $("zip-problems").querySelector("ul").replaceChildren(...lines);
      $("zip-cancel").textContent = "Close";
    } catch (error) {
      if (!controller.signal.aborted) throw error;
    } finally {
      if (running === controller) running = null;
      $("zip-kinds").disabled = false;
      ready();
    }
  });
}
