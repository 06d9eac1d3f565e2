// The user of this browser's session with role, links to the pages of users and admins, and a button to sign out.
// In open mode there is no session to sign out of, only the links.

import { resolveUrl } from "./root.js";
import { fetchSession, signOut } from "./service.js";
import { label, say } from "./text.js";

/** Shows the account in `#account`, with links to other pages. Returns the session; null without one. */
export async function showAccount() {
  const session = await fetchSession();
  if (!session) return null;
  document.getElementById("account").replaceChildren(...createLinks(session), ...createAccount(session));
  return session.expires_at ? session : null; // open mode has no sessions
}

/** Returns name, role and sign-out of a session; nothing in open mode. */
export function createAccount(session) {
  if (!session.expires_at) return [];
  label(document.getElementById("account"), "signed_in_as", { name: session.user_id });
  const name = Object.assign(document.createElement("span"), { className: "who", textContent: session.user_id });
  name.title = session.user_id;
  const role = say(document.createElement("span"), `role_${session.role}`);
  role.className = "role";
  const button = say(document.createElement("button"), "sign_out");
  button.type = "button";
  button.id = "signout";
  button.className = "quiet";
  button.addEventListener("click", async () => {
    await signOut();
    location.assign(resolveUrl("signin"));
  });
  const user = Object.assign(document.createElement("span"), { className: "user" });
  user.append(name, role, button);
  return [user];
}

function createLinks({ role }) {
  const links = role === "admin" ? [["admin", "administration"]] : [];
  return [...links, ["account", "my_account"]].map(([path, key]) => {
    const link = say(document.createElement("a"), key);
    link.href = resolveUrl(path);
    link.className = "account-link";
    return link;
  });
}
