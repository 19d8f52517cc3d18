// Swagger UI with the description of this service; swagger-ui-bundle.js defines the function.
window.SwaggerUIBundle({ url: "openapi.json", dom_id: "#api", deepLinking: true, validatorUrl: null });
