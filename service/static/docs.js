// Swagger UI with the description of this service; swagger-ui-bundle.js defines the function.

/** Swagger UI would ask for the media type that is shown, though `output` may choose another. */
function acceptAll(request) {
  request.headers.accept = "*/*";
  return request;
}

window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  requestInterceptor: acceptAll,
  validatorUrl: null,
});
