"use strict";
(() => {
  const start = JSON.parse(document.body.dataset.start);
  const byId = (id) => document.getElementById(id);
  const LARGEST_UPLOAD = 12e6, FINEST = 0.004, KEY_STEP = 0.03;
  const classes = [];
  let query = null, running = false, again = false;

  const element = (name, text = "", kind = "") => {
    const made = document.createElement(name);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const complain = (text) => { byId("problem").textContent = text; byId("problem").hidden = !text; };

  // One field to draw on or drop a picture into. `number` is what the server calls its image; null: not sent yet.
  class Pad {
    constructor(parent, label) {
      const part = byId("pad").content.cloneNode(true);
      this.node = part.querySelector(".pad");
      this.canvas = part.querySelector("canvas");
      this.image = part.querySelector(".seen");
      this.strokes = []; this.photo = null; this.bitmap = null; this.number = null; this.version = 0; this.pen = null;
      this.rename(label);
      parent.append(part);
      this.node.querySelector(".undo").onclick = () => this.undo();
      this.node.querySelector(".clear").onclick = () => this.clear();
      this.node.querySelector("input").onchange = (event) => {
        this.take(event.target.files[0]);
        event.target.value = "";
      };
      this.listen();
      this.watcher = new ResizeObserver(() => this.draw());
      this.watcher.observe(this.canvas);
      this.draw();
    }

    get filled() { return this.strokes.length > 0 || this.photo !== null; }

    rename(label) {
      this.label = label;
      this.canvas.setAttribute("aria-label", label);
      this.image.alt = `${label}, as the network sees it`;
    }

    listen() {
      const canvas = this.canvas;
      let stroke = null;
      const point = (event) => {
        const box = canvas.getBoundingClientRect();
        const place = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
        return place.map((v) => Math.round(1e4 * Math.min(1, Math.max(0, v))) / 1e4);
      };
      canvas.onpointerdown = (event) => {
        if (event.button !== 0) return;
        canvas.setPointerCapture(event.pointerId);
        this.pen = null;
        this.dropPhoto();
        stroke = point(event);
        this.strokes.push(stroke);
        this.changed();
      };
      canvas.onpointermove = (event) => {
        if (!stroke) return;
        for (const each of event.getCoalescedEvents?.() ?? [event]) {
          const [x, y] = point(each);
          if (Math.hypot(x - stroke.at(-2), y - stroke.at(-1)) > FINEST) stroke.push(x, y);
        }
        this.changed(this === query);
      };
      canvas.onpointerup = canvas.onpointercancel = () => { if (stroke) { stroke = null; this.changed(); } };
      canvas.onkeydown = (event) => this.key(event);
      canvas.onblur = () => { this.pen = null; this.draw(); };
      this.node.ondragover = (event) => { event.preventDefault(); this.node.classList.add("over"); };
      this.node.ondragleave = () => this.node.classList.remove("over");
      this.node.ondrop = (event) => {
        event.preventDefault();
        this.node.classList.remove("over");
        this.take(event.dataTransfer.files[0]);
      };
    }

    key(event) {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.ctrlKey && event.key !== "z") return;
      if (move || event.key === " ") {
        event.preventDefault();
        this.pen ??= { x: 0.5, y: 0.5, stroke: null };
        if (move) {
          this.pen.x = Math.min(0.98, Math.max(0.02, this.pen.x + KEY_STEP * move[0]));
          this.pen.y = Math.min(0.98, Math.max(0.02, this.pen.y + KEY_STEP * move[1]));
          if (this.pen.stroke) { this.pen.stroke.push(this.pen.x, this.pen.y); this.changed(); }
        } else if (this.pen.stroke) {
          this.pen.stroke = null;
        } else {
          this.dropPhoto();
          this.pen.stroke = [this.pen.x, this.pen.y];
          this.strokes.push(this.pen.stroke);
          this.changed();
        }
        this.draw();
      } else if (event.key === "z" || event.key === "Z") {
        this.undo();
      } else if (event.key === "Delete" || event.key === "Backspace") {
        event.preventDefault();
        this.clear();
      }
    }

    dropPhoto() { this.photo = this.bitmap = null; }
    undo() { if (this.pen) this.pen.stroke = null; this.photo ? this.dropPhoto() : this.strokes.pop(); this.changed(); }
    clear() { if (this.pen) this.pen.stroke = null; this.dropPhoto(); this.strokes = []; this.changed(); }

    async take(file) {
      if (!file) return;
      if (file.size > LARGEST_UPLOAD) {
        complain(`${file.name} is larger than ${LARGEST_UPLOAD / 1e6} MB; make it smaller`);
        return;
      }
      this.strokes = []; this.photo = file; this.bitmap = null;
      this.changed();
      try { this.bitmap = await createImageBitmap(file); } catch { /* the server says what is wrong with it */ }
      this.draw();
    }

    changed(stillDrawing = true) {
      this.number = null; this.version += 1;
      if (!this.filled) this.image.hidden = true;
      this.draw();
      if (stillDrawing) update();
    }

    draw() {
      const side = Math.max(1, Math.round(this.canvas.clientWidth * (window.devicePixelRatio || 1)));
      if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
      const pen = this.canvas.getContext("2d");
      const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
      pen.clearRect(0, 0, side, side);
      if (this.bitmap) { pen.drawImage(this.bitmap, 0, 0, side, side); return; }
      pen.strokeStyle = colour("--grid"); pen.lineWidth = 1;
      pen.beginPath();
      for (const at of [1 / 3, 2 / 3]) {
        pen.moveTo(at * side, 0); pen.lineTo(at * side, side);
        pen.moveTo(0, at * side); pen.lineTo(side, at * side);
      }
      pen.stroke();
      pen.strokeStyle = pen.fillStyle = colour("--pen");
      pen.lineWidth = start.penWidth * side; pen.lineCap = pen.lineJoin = "round";
      for (const stroke of this.strokes) {
        pen.beginPath();
        pen.moveTo(stroke[0] * side, stroke[1] * side);
        for (let i = 0; i < stroke.length; i += 2) pen.lineTo(stroke[i] * side, stroke[i + 1] * side);
        pen.stroke();
      }
      if (this.pen) {
        pen.fillStyle = colour("--accent"); pen.beginPath();
        pen.arc(this.pen.x * side, this.pen.y * side, (this.pen.stroke ? 0.035 : 0.022) * side, 0, 7); pen.fill();
      }
    }

    async send() {
      const version = this.version;
      const drawn = this.photo === null;
      const body = drawn ? JSON.stringify({ strokes: this.strokes }) : this.photo;
      let answer;
      try {
        answer = await ask("/image", body, drawn ? "application/json" : "application/octet-stream");
      } catch (error) {
        if (!drawn && this.version === version && [413, 415].includes(error.status)) {
          this.dropPhoto();
          this.changed(false);
        }
        throw error;
      }
      if (this.version !== version) return;
      this.number = answer.image; this.image.src = answer.seen; this.image.hidden = false;
    }

    gone() { this.watcher.disconnect(); this.node.remove(); }
  }

  async function ask(address, body, type) {
    let answer;
    try {
      const headers = { "Content-Type": type, "X-Session": start.session };
      answer = await fetch(address, { method: "POST", body, headers, credentials: "omit", redirect: "error" });
    } catch { throw new Error("The demo does not answer: is it still running in its terminal?"); }
    const content = await answer.json().catch(() => ({}));
    if (!answer.ok) {
      const text = content.error || `The demo answered with ${answer.status}.`;
      throw Object.assign(new Error(text), { status: answer.status });
    }
    return content;
  }

  const pads = () => [...classes.flatMap((one) => one.examples), query];

  // One request at a time; what changes meanwhile is one more round.
  async function update() {
    if (running) { again = true; return; }
    running = true;
    do {
      again = false;
      try { await round(); complain(""); } catch (error) { complain(error.message); }
    } while (again);
    running = false;
  }

  async function round(mayRetry = true) {
    for (const pad of pads()) if (pad.filled && pad.number === null) await pad.send();
    const numbersOf = (one) => one.examples.map((pad) => pad.number).filter((number) => number !== null);
    const taught = classes.map((one) => ({ one, numbers: numbersOf(one) })).filter(({ numbers }) => numbers.length);
    if (taught.length < 2 || query.number === null || again) { if (!again) show(taught, null); return; }
    try {
      const question = { classes: taught.map(({ numbers }) => numbers), query: query.number };
      show(taught, await ask("/classify", JSON.stringify(question), "application/json"));
    } catch (error) {
      if (error.status !== 410 || !mayRetry) throw error;
      for (const pad of pads()) pad.number = null;
      await round(false);
    }
  }

  const steps = (count) => `${count} step${count === 1 ? "" : "s"}`;
  const percent = (p) => `${Math.round(100 * p)} %`;

  function show(taught, answer) {
    for (const pad of pads()) pad.node.classList.remove("winner");
    const verdict = byId("verdict"), bars = byId("bars"), note = byId("note");
    if (!answer) {
      const draw = start.drawings ? "draw" : "drop a picture";
      verdict.replaceChildren(
        taught.length < 2
          ? `Teach it two classes or more, then ${draw} here.`
          : `${taught.length} classes learned. ${start.drawings ? "Draw" : "Drop a picture of"} one of them here.`,
      );
      bars.replaceChildren();
      note.textContent = "";
      return;
    }
    const last = answer.steps.at(-1), best = last.indexOf(Math.max(...last));
    const winner = taught[best].one;
    const after = `${percent(last[best])} after ${steps(answer.steps.length - 1)}`;
    verdict.replaceChildren("Looks like", element("b", winner.name), after);
    for (const pad of winner.examples) if (pad.filled) pad.node.classList.add("winner");
    const table = element("div", "", "steps");
    table.setAttribute("role", "img");
    const spoken = ({ one }, rank) => `${one.name}: ${answer.steps.map((step) => percent(step[rank])).join(", ")}`;
    table.setAttribute("aria-label", taught.map(spoken).join("; "));
    taught.forEach(({ one }, rank) => {
      const first = rank === best ? " first" : "", track = element("div", "", `track${first}`);
      for (const step of answer.steps) {
        const bar = element("i");
        bar.style.setProperty("--p", `${Math.max(1.5, 100 * step[rank])}%`);
        track.append(bar);
      }
      const who = element("span", one.name, `who${first}`), value = element("span", percent(last[rank]), `value${first}`);
      table.append(who, track, value);
    });
    const axis = element("div", "", "axis");
    answer.steps.forEach((_, step) => axis.append(element("span", String(step))));
    table.append(element("span"), axis, element("span"));
    bars.replaceChildren(table);
    note.textContent =
      "Probability of each class after each step; 0 is before learning. " +
      `Learned and classified in ${answer.milliseconds} ms.`;
  }

  function addClass() {
    if (classes.length >= start.mostClasses) return;
    const part = byId("class").content.cloneNode(true);
    const node = part.querySelector(".class"), input = part.querySelector(".name");
    const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    const free = [...letters].find((letter) => !classes.some((one) => one.name === letter));
    const one = { node, name: free, examples: [] };
    input.value = one.name;
    input.oninput = () => { one.name = input.value.trim() || free; label(); update(); };
    const label = () => one.examples.forEach((pad, rank) => pad.rename(`Example ${rank + 1} of ${one.name}`));
    const more = () => { one.examples.push(new Pad(node.querySelector(".examples"), "")); label(); };
    node.querySelector(".more").onclick = () => { more(); one.examples.at(-1).canvas.focus(); };
    node.querySelector(".remove").onclick = () => {
      classes.splice(classes.indexOf(one), 1);
      one.examples.forEach((pad) => pad.gone());
      node.remove();
      count(); update();
    };
    classes.push(one);
    byId("classes").append(part);
    more();
    count();
  }

  function count() {
    byId("add-class").disabled = classes.length >= start.mostClasses;
    for (const one of classes) one.node.querySelector(".remove").disabled = classes.length <= 2;
  }

  function startOver() {
    for (const one of classes.splice(0)) { one.examples.forEach((pad) => pad.gone()); one.node.remove(); }
    query.clear();
    for (let i = 0; i < Math.min(3, start.mostClasses); i += 1) addClass();
    show([], null);
  }

  byId("run").textContent = `${start.run} · learned to learn on ${start.dataset}`;
  byId("lead").textContent =
    `This network has never seen your ${start.drawings ? "drawings" : "pictures"}. ` +
    `All it gets: ${steps(start.steps)} of gradient descent on your examples.`;
  if (!start.drawings)
    for (const hint of document.querySelectorAll("[data-pictures]")) hint.textContent = hint.dataset.pictures;
  byId("ways").textContent = start.fixedHead
    ? `This network has ${start.mostClasses} outputs: 2 to ${start.mostClasses} classes.`
    : `This network makes its head for each task: 2 to ${start.mostClasses} classes.`;
  byId("add-class").onclick = addClass;
  byId("start-over").onclick = startOver;
  for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => pads().forEach((pad) => pad.draw()));
  query = new Pad(byId("query"), "The question");
  startOver();
})();
