/** How the mask is shown: fill or outlines, opacity, colour, hidden for a moment. */

import { $, fill } from "./dom.js";

/** @param {import("./viewer.js").Viewer} viewer */
export function install(viewer) {
  const opacities = { fill: 0.5, outline: 1 };
  const style = () => document.querySelector("[name=style]:checked").value;
  const isHidden = () => $("peek").getAttribute("aria-pressed") === "true";

  function setOpacity(opacity) {
    opacities[style()] = opacity;
    $("opacity").value = opacity;
    fill($("opacity"), opacity);
    $("opacity-text").textContent = `${Math.round(100 * opacity)} %`;
    hide(false);
  }

  function hide(isHidden) {
    $("peek").setAttribute("aria-pressed", String(isHidden));
    viewer.opacity = isHidden ? 0 : opacities[style()];
  }

  function setColour(colour) {
    viewer.colour = colour;
    $("colour").value = `#${colour.map((each) => each.toString(16).padStart(2, "0")).join("")}`;
  }

  const chosen = () => [1, 3, 5].map((at) => parseInt($("colour").value.slice(at, at + 2), 16));
  $("colour").addEventListener("input", () => setColour(chosen()));
  $("opacity").addEventListener("input", () => setOpacity(Number($("opacity").value)));
  $("peek").addEventListener("click", () => hide(!isHidden()));
  for (const radio of document.querySelectorAll("[name=style]")) {
    radio.addEventListener("change", () => {
      viewer.style = style();
      setOpacity(opacities[style()]);
    });
  }
  setOpacity(opacities.fill);
  return {
    setColour,
    toggleStyle: () => document.querySelector("[name=style]:not(:checked)").click(),
    toggleMask: () => hide(!isHidden()),
  };
}
