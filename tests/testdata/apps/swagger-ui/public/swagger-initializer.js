window.ui = SwaggerUIBundle({
  url: "openapi.json",
  validatorUrl: null,
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
  layout: "StandaloneLayout",
});
