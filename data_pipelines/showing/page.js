// What a tooltip says is also told at the foot of the page, where no pointer hovers.
const facts = document.getElementById("facts");
for (const event of ["pointerover", "click"]) {
  document.addEventListener(event, (happened) => {
    const told = happened.target.closest("[title]");
    facts.textContent = told ? told.title.replaceAll("\n", "  ·  ") : "";
  });
}
