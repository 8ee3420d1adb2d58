"use strict";
const detail = document.getElementById("detail");
let chosen = null;
function choose(z) {
  if (chosen) chosen.classList.remove("on");
  chosen = z;
  z.classList.add("on");
  detail.textContent = z.title;
  const box = z.getBoundingClientRect();
  if (box.top < 0 || box.bottom > innerHeight - detail.offsetHeight)
    z.scrollIntoView({block: "center"});
}
for (const pane of document.querySelectorAll(".source")) {
  pane.addEventListener("click", event => {
    const z = event.target.closest(".z");
    if (z) choose(z);
  });
  pane.addEventListener("keydown", event => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const inside = chosen && chosen.parentElement === pane;
    const to = {
      ArrowRight: inside ? chosen.nextElementSibling : pane.firstElementChild,
      ArrowLeft: inside ? chosen.previousElementSibling : pane.lastElementChild,
      Home: pane.firstElementChild,
      End: pane.lastElementChild,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (to) choose(to);
  });
}
