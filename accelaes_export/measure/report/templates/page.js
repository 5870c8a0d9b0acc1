"use strict";
/* Everything stands on the page without this; it adds the slider, the choice of a policy, and saving the data. */
(() => {
  const save = document.getElementById("save");
  save.hidden = false;
  save.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([document.getElementById("data").textContent], { type: "application/json" }));
    link.download = "report.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  for (const scene of document.querySelectorAll(".scene")) {
    const [compare, policy, cut] = [".compare", "select", "input"].map((part) => scene.querySelector(part));
    if (!compare) continue;
    const over = compare.querySelector(".over");
    const name = compare.querySelector(".right");
    const show = () => {
      for (const figure of scene.querySelectorAll("figure[data-policy]")) {
        const chosen = figure.dataset.policy === policy.value;
        figure.classList.toggle("chosen", chosen);
        if (chosen) over.src = figure.querySelector("img").src;
      }
      for (const panel of scene.querySelectorAll(".where")) panel.hidden = panel.dataset.policy !== policy.value;
      name.textContent = over.alt = policy.selectedOptions[0].textContent;
    };
    const slide = () => compare.querySelector(".pair").style.setProperty("--cut", cut.value + "%");
    policy.addEventListener("change", show);
    cut.addEventListener("input", slide);
    compare.querySelector(".under").src = scene.querySelector("figure.reference img").src;
    compare.hidden = false;
    show();
    slide();
  }
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")].filter((part) => part.querySelector("table"));
    for (const part of opened) part.open = true;
  });
  addEventListener("afterprint", () => {
    for (const part of opened) part.open = false;
  });
})();
