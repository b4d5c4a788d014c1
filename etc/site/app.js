"use strict";

const asset = document.getElementById("asset").textContent;
const answer = document.getElementById("answer");
const again = document.getElementById("again");
const outcome = document.getElementById("outcome");

function row(name, value) {
  const line = answer.insertRow();
  const head = document.createElement("th");
  head.textContent = name;
  line.append(head);
  line.insertCell().textContent = value;
}

async function ask() {
  const response = await fetch(asset);
  const size = (await response.arrayBuffer()).byteLength;
  answer.replaceChildren();
  row("Status", `${response.status} ${response.statusText}`);
  row("Size", `${size} bytes`);
  for (const name of ["ETag", "Content-Type", "Cache-Control", "X-Frame-Options"]) {
    const value = response.headers.get(name);
    if (value !== null) row(name, value);
  }
  let etag = response.headers.get("ETag");
  again.disabled = etag === null;
  const askAgain = async () => {
    const answer = await fetch(asset, { headers: { "If-None-Match": etag } });
    await answer.arrayBuffer();
    return answer;
  };
  again.onclick = async () => {
    let second = await askAgain();
    if (second.status === 200) {
      // The server has compressed the file meanwhile, and the coding has an ETag of its own.
      etag = second.headers.get("ETag");
      second = await askAgain();
    }
    outcome.textContent =
      second.status === 304 ? "304: not changed, and not sent again." : `${second.status}: sent again.`;
  };
}

ask().catch((problem) => {
  answer.replaceChildren();
  row("Failed", problem.message);
});
