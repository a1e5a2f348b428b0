"use strict";
// A click on a picture shows the row of its image. Nothing is loaded: the rows are in the page.
(() => {
  const table = JSON.parse(document.getElementById("rows").textContent);
  const dialog = document.getElementById("image");
  const picture = dialog.querySelector("img");
  const body = dialog.querySelector("tbody");
  const title = dialog.querySelector("h2");
  const cells = [...document.querySelectorAll("button.cell")];
  let current = 0;

  const show = (number) => {
    current = (number + cells.length) % cells.length;
    const cell = cells[current];
    const source = cell.querySelector("img");
    const row = table.rows[Number(cell.dataset.row)];
    const value = (name) => row[table.columns.indexOf(name)];
    picture.src = source.src;
    picture.alt = source.alt;
    picture.className = source.className;
    const name = value("class_name");
    title.textContent = `${name === null ? "Image" : `Class ${name}`}: ${value("key")}`;
    body.replaceChildren(
      ...table.columns.flatMap((name, index) => {
        if (row[index] === null) return [];
        const line = document.createElement("tr");
        const head = document.createElement("th");
        const data = document.createElement("td");
        const about = document.createElement("span");
        head.textContent = name;
        about.className = "about";
        about.textContent = table.about[index];
        head.append(about);
        data.textContent = row[index];
        line.append(head, data);
        return [line];
      }),
    );
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  };

  cells.forEach((cell, number) => cell.addEventListener("click", () => show(number)));
  dialog.querySelector(".before").addEventListener("click", () => show(current - 1));
  dialog.querySelector(".after").addEventListener("click", () => show(current + 1));
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(current - 1);
    if (event.key === "ArrowRight") show(current + 1);
  });
  dialog.addEventListener("close", () => cells[current].focus());
})();
