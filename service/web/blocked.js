// Explains why the service refuses all requests of this page: a reverse proxy changes the Host header, with which the
// service compares the origin of the page.

/** Shows the explanation for the problem `foreign_origin`. */
export function explainBlocked(problem) {
  if (problem?.code !== "foreign_origin") return;
  document.getElementById("blocked").hidden = false;
  document.getElementById("blocked-remedy").textContent = [
    "# nginx",
    "proxy_set_header Host $http_host;",
    "# Kotae",
    `KOTAE_ALLOWED_ORIGINS=${location.origin}`,
  ].join("\n");
}
