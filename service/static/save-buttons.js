/** A button that saves each kind of answer, and the dialog for a ZIP of all images. */

import { $, make } from "./dom.js";
import { notice } from "./notices.js";
import { archive, download, KINDS } from "./answers.js";
import { count } from "./words.js";

/**
 * The buttons. A second click cancels.
 * @param {(kind: string, signal: AbortSignal) => Promise<{name: string, blob: Blob}>} fetchKind
 * @param {(name: string) => void} onSaved
 * @param {(error: Error) => void} onError
 */
export function installButtons(fetchKind, onSaved, onError) {
  const running = new Map(); // kind -> AbortController

  async function save({ name: kind, title }, button) {
    if (running.has(kind)) return running.get(kind).abort();
    const { signal } = running.set(kind, new AbortController()).get(kind);
    button.setAttribute("aria-busy", "true");
    button.title = "Cancel";
    try {
      const { name, blob } = await fetchKind(kind, signal);
      download(blob, name);
      notice("save", null);
      onSaved(name);
    } catch (error) {
      if (!signal.aborted) {
        const reason = [error.title, error.message].filter(Boolean).join(": ");
        notice("save", `${title} was not saved. ${reason}. ${error.advice ?? ""}`, { isError: true });
        onError(error);
      }
    }
    button.removeAttribute("aria-busy");
    button.title = "";
    running.delete(kind);
  }

  for (const kind of KINDS) {
    const [title, hint] = [make("span", {}, kind.title), make("small", {}, kind.hint)];
    const button = make("button", { type: "button", id: `save-${kind.name}`, className: "kind" }, title, " ", hint);
    button.addEventListener("click", () => save(kind, button));
    $("kinds").append(button);
  }
}

export function enableSaving(isImage, isService) {
  for (const { name } of KINDS) $(`save-${name}`).disabled = !isImage || !isService;
  $("save-all").disabled = !isService;
}

/** The dialog that saves all images. `about` tells, when it opens, of `items`, `settings`, `words`, `modelIdOf`. */
export function installZip(api, about) {
  const dialog = $("zip-dialog");
  let running = null;

  for (const { name, title } of KINDS) {
    const checked = name === "mask" || name === "table";
    $("zip-kinds").append(make("label", {}, make("input", { type: "checkbox", value: name, checked }), ` ${title}`));
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
      $("zip-problems").querySelector("ul").replaceChildren(...failures.map((text) => make("li", {}, text)));
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
