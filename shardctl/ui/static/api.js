// Talking to the server. The token comes in the address behind #, where no browser sends it and no log has it.

const KEPT = "shardctl-token";

const given = location.hash.slice(1);
if (given) {
  sessionStorage.setItem(KEPT, given); // of this tab alone, so that a reload works
  history.replaceState(null, "", location.pathname); // and nobody copies it with the address
}

export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `the server answered ${status}`);
    this.status = status;
    this.now = problem.now;
  }
}

export async function get(path, query = {}) {
  const text = new URLSearchParams(query).toString();
  return answer(await fetch(`/api/${path}${text ? `?${text}` : ""}`, { headers: headers() }));
}

export async function post(path, body) {
  const sent = { method: "POST", headers: { ...headers(), "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return answer(await fetch(`/api/${path}`, sent));
}

function headers() {
  return { Authorization: `Bearer ${sessionStorage.getItem(KEPT) ?? ""}` };
}

async function answer(response) {
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, content);
  return content;
}
