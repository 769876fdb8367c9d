// Images of a turn: chosen, dropped or pasted, shown as thumbnails, sent as data URIs.
const IMAGE_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
/** Limits of images of each model that reads images. */
const imageLimits = new Map();
const readsImages = () => imageLimits.has($("model").value);
let imageTurn = null; // the turn for which a file is being chosen

const isImageFile = (file) => file.type.startsWith("image/");
/** Shorten the images in a text of JSON, where they are shown or compared. */
const shortened = (key, value) =>
  isText(value) && value.length > 200 && value.startsWith("data:") ? `${value.slice(0, 40)}... (${count(value.length)} characters)` : value;

function imageItem(source) {
  const item = el("li", { class: "image" },
    el("img", { src: source }),
    el("button", { type: "button", class: "icon remove-image", onclick: () => removeImage(item) }, "×"),
  );
  item.source = source;
  return item;
}

const imagesOf = (turn) => [...turn.querySelectorAll(".image")].map((item) => item.source);

function removeImage(item) {
  const turn = item.closest(".turn");
  const next = item.nextElementSibling ?? item.previousElementSibling;
  item.remove();
  renumber();
  markStale();
  (next?.querySelector("button") ?? turn.querySelector("textarea")).focus();
  announce("Removed the image.");
}

/** Add image files to a turn; without a turn, to the user's last one. */
async function addImages(files, turn) {
  const to = turn ?? [...$("turns").children].findLast((item) => item.querySelector("select").value === "user");
  if (!to || !readsImages()) {
    showError(readsImages() ? "Add a turn of the user for the image." : `${$("model").value} reads only text. Choose a model that reads images.`);
    return;
  }
  const { max_image_bytes: limit } = imageLimits.get($("model").value);
  for (const file of files) {
    if (!IMAGE_TYPES.includes(file.type)) {
      showError(`${file.name} is not a PNG, JPEG, WebP, GIF or BMP image.`);
    } else if (file.size > limit) {
      showError(`${file.name} has ${count(file.size)} bytes, and the limit is ${count(limit)}.`);
    } else {
      to.querySelector(".images").append(imageItem(await readAsUrl(file)));
      renumber();
      markStale();
      announce(`Added an image to turn ${[...$("turns").children].indexOf(to) + 1}.`);
    }
  }
}

function readAsUrl(file) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(file);
  });
}

function chooseImage(turn) {
  imageTurn = turn;
  $("image-file").click();
}

function pasteImages(event, turn) {
  const files = [...event.clipboardData.files].filter(isImageFile);
  if (!files.length || event.clipboardData.getData("text")) return; // a copied text may have a picture of itself
  event.preventDefault();
  addImages(files, turn);
}

function setUpImages() {
  $("image-file").addEventListener("change", async (event) => {
    const files = [...event.target.files];
    event.target.value = ""; // so that the same file can be chosen again
    await addImages(files, imageTurn);
    imageTurn?.querySelector("textarea").focus();
  });
}
