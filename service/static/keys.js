/** Keyboard shortcuts and the dialog that lists them. */

const OFF = "unet-service-shortcuts-off";

const $ = (id) => document.getElementById(id);
const isTyping = (target) => target.matches?.("input:not([type=range], [type=checkbox], [type=radio]), textarea, select");
/** Keys that a slider or a group of radio buttons needs for itself. */
const isForControl = (target, key) => target.matches?.("input") && /^(Arrow|Page|Home|End)/.test(key);

/**
 * @param {{keys: string[], shown?: string, what: string, act: () => void, isPlain?: boolean}[]} shortcuts
 *   `keys` as KeyboardEvent.key; `isPlain: false` for those that are no single character and always work
 */
export function install(shortcuts) {
  $("shortcuts").replaceChildren(
    ...shortcuts.map(({ keys, shown, what }) => {
      const row = document.createElement("div");
      const term = document.createElement("dt");
      for (const key of shown?.split(" ") ?? keys) term.append(Object.assign(document.createElement("kbd"), { textContent: key }));
      row.append(term, Object.assign(document.createElement("dd"), { textContent: what }));
      return row;
    }),
  );
  const box = $("shortcuts-on");
  box.checked = !localStorage.getItem(OFF);
  box.addEventListener("change", () => (box.checked ? localStorage.removeItem(OFF) : localStorage.setItem(OFF, "1")));
  $("help").addEventListener("click", () => $("help-dialog").showModal());

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (document.querySelector("dialog[open]") || isForControl(event.target, event.key)) return;
    const found = shortcuts.find(({ keys }) => keys.includes(event.key));
    if (!found || (event.key.length === 1 && !box.checked)) return;
    if (found.isView && event.target !== $("view") && event.target !== document.body) return;
    event.preventDefault();
    found.act(event);
  });
}
