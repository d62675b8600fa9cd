// Starts Swagger UI over the description that the page names.

SwaggerUIBundle({
  dom_id: "#docs",
  url: document.getElementById("docs").dataset.openapi,
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // else a description that others can reach is sent to swagger.io
});
