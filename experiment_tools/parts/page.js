"use strict";
(() => {
  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; document.querySelectorAll(".cursor").forEach((line) => line.remove()); };

  const show = (chart, rows, event) => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
    const row = rows.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    hide();
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const bottom = chart.viewBox.baseVal.height - 34;
    for (const [key, value] of Object.entries({ x1: row[0], x2: row[0], y1: 12, y2: bottom, class: "cursor" })) {
      line.setAttribute(key, value);
    }
    chart.append(line);
    const title = document.createElement("b");
    title.textContent = row[1];
    tip.replaceChildren(title, ...row[2].map(([name, colour, text]) => {
      const entry = document.createElement("div");
      const key = document.createElement("i");
      key.style.background = colour;
      const value = document.createElement("span");
      value.textContent = text;
      entry.append(key, name, value);
      return entry;
    }));
    tip.hidden = false;
    const left = box.left + row[0] / chart.viewBox.baseVal.width * box.width;
    const width = tip.offsetWidth;
    const place = left + width + 16 > document.documentElement.clientWidth ? left - width - 12 : left + 12;
    tip.style.left = Math.max(4, place) + "px";
    const height = tip.offsetHeight;
    tip.style.top = Math.max(4, Math.min(event.clientY - height - 12, window.innerHeight - height - 4)) + "px";
  };

  for (const chart of document.querySelectorAll("svg[data-tips]")) {
    const rows = JSON.parse(chart.dataset.tips);
    chart.addEventListener("pointermove", (event) => show(chart, rows, event));
    chart.addEventListener("pointerdown", (event) => show(chart, rows, event));
    chart.addEventListener("pointerleave", hide);
  }
  window.addEventListener("scroll", hide, { passive: true });

  const copy = document.getElementById("copy");
  if (copy && navigator.clipboard) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById("command").textContent);
      copy.textContent = "copied";
    });
  }

  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      links.get(entry.target.id)?.classList.toggle("here", entry.isIntersecting);
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  document.querySelectorAll("main > section[id]").forEach((section) => seen.observe(section));
})();
