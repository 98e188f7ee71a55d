// A question before something is replaced.

const get = (id) => document.getElementById(id);

/** Whether the answer is yes, whose button says `yes`. */
export async function ask(title, text, yes) {
  const dialog = get("replace-dialog");
  get("replace-title").textContent = title;
  get("replace-text").textContent = text;
  dialog.querySelector(".danger").textContent = yes;
  dialog.returnValue = "keep";
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  return dialog.returnValue === "replace";
}
