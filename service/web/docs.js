// The API documentation: Swagger UI, with the user of this browser's session above it.

import { showAccount } from "./account.js";
import { setLanguage } from "./text.js";

setLanguage("en"); // the language of the OpenAPI document
showAccount();
window.SwaggerUIBundle({ url: "openapi.json", dom_id: "#docs", deepLinking: true });
