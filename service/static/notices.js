/** Lines above the image that tell of something. */

const $ = (id) => document.getElementById(id);

/** Shows a line, instead of the one with the same id; null takes it away. */
export function notice(id, text, { isError = false, action = null } = {}) {
  const before = $(`notice-${id}`);
  if (!text) return before?.remove();
  if (before?.querySelector("p").textContent === text) return;
  const line = Object.assign(document.createElement("div"), { id: `notice-${id}`, className: "notice" });
  line.setAttribute("role", isError ? "alert" : "status");
  line.append(Object.assign(document.createElement("p"), { textContent: text }));
  const button = (label, className, act) => {
    const each = Object.assign(document.createElement("button"), { type: "button", className, textContent: label });
    each.addEventListener("click", act);
    line.append(each);
  };
  if (action) button(action.label, "primary small", action.act);
  if (isError) button("Dismiss", "plain small", () => line.remove());
  before ? before.replaceWith(line) : $("notices").append(line);
}
