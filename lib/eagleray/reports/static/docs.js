// Shows the service's own OpenAPI document, and asks nobody else about it.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: false,
  queryConfigEnabled: false,
  validatorUrl: null,
});
