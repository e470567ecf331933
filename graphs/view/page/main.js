// Start: the state, the controls, the first drawing.
fromAddress();
if (compared) blend(state.mix);
byId("text").classList.add("folded");
byId("page").hidden = false;
buildControls();
rebuild();
if (!state.density) {
  const whole = view.links.reduce((sum, link) => sum + Math.abs(link.flow), 0);
  const held = view.links.slice(0, 500).reduce((sum, link) => sum + Math.abs(link.flow), 0);
  state.density = whole ? Math.max(0.01, Math.floor((100 * Math.min(held, 0.8 * whole)) / whole) / 100) : 1;
  drawFaint();
  drawControls();
}
showEnd();
addEventListener("resize", () => {
  if (!fitted) return;
  zoom = fittingZoom();
  resize();
  showEnd();
});
requestAnimationFrame(() => setTimeout(() => performance.mark("drawn")));
