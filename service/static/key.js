/** The dialog that asks for the API key. */

import { $ } from "./dom.js";

/** @returns {Promise<string|null>} null: not now */
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
