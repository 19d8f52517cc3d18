/** Keyboard shortcuts and the dialog that lists them. */

import { $, make } from "./dom.js";

const OFF = "unet-service-shortcuts-off";

const CAPS = { "-": "−", ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };

const isTyping = (target) => target.matches?.("input:not([type=range], [type=checkbox], [type=radio])");
/** Keys that a slider or a group of radio buttons needs for itself. */
const isForControl = (target, key) => target.matches?.("input") && /^(Arrow|Page|Home|End)/.test(key);

/**
 * @param {{what: string, keys: Record<string, () => void>, inView?: boolean}[]} shortcuts rows of the list: what each
 *   is for, and its keys, as KeyboardEvent.key; those of `inView` belong to other controls while these have the focus
 */
export function install(shortcuts) {
  $("shortcuts").replaceChildren(
    ...shortcuts.map(({ what, keys }) => {
      const caps = Object.keys(keys).map((key) => make("kbd", {}, CAPS[key] ?? key));
      return make("div", {}, make("dt", {}, ...caps), make("dd", {}, what));
    }),
  );
  const box = $("shortcuts-on");
  box.checked = !localStorage.getItem(OFF);
  box.addEventListener("change", () => (box.checked ? localStorage.removeItem(OFF) : localStorage.setItem(OFF, "1")));
  $("help").addEventListener("click", () => $("help-dialog").showModal());

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (document.querySelector("dialog[open]") || isForControl(event.target, event.key)) return;
    const key = event.key === "=" ? "+" : event.key; // the same key without Shift on most keyboards
    const found = shortcuts.find(({ keys }) => key in keys);
    if (!found || (key.length === 1 && !box.checked)) return;
    if (found.inView && ![$("view"), document.body].includes(event.target)) return;
    event.preventDefault();
    found.keys[key]();
  });
}
