// Shows the OpenAPI document of this service; no other server is contacted.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: false,
  queryConfigEnabled: false,
  validatorUrl: null,
});
