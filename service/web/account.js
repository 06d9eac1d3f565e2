// The user of this browser's session, with a button to sign out. In open mode there is none.

import { fetchSession, signOut } from "./service.js";
import { label, say } from "./text.js";

/** Shows name and sign-out in `#account`. Returns the session; null without one. */
export async function showAccount() {
  const session = await fetchSession();
  if (!session?.expires_at) return null; // open mode has no sessions
  const name = Object.assign(document.createElement("span"), { className: "who", textContent: session.user_id });
  const button = say(document.createElement("button"), "sign_out");
  button.type = "button";
  button.id = "signout";
  button.className = "quiet";
  button.addEventListener("click", async () => {
    await signOut();
    location.assign("signin");
  });
  const account = document.getElementById("account");
  label(account, "signed_in_as", { name: session.user_id });
  account.replaceChildren(name, button);
  return session;
}
