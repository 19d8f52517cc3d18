// Swagger UI with the description of this service; swagger-ui-bundle.js defines the function.

/**
 * Swagger UI would ask for the media type that is shown, though `output` may choose another. The key is the one that
 * was given to the page in this tab (api.js); another one under "Authorize" wins.
 */
function prepared(request) {
  const key = sessionStorage.getItem("unet-service-key");
  if (key) request.headers.Authorization ??= `Bearer ${key}`;
  request.headers.accept = "*/*";
  return request;
}

window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  requestInterceptor: prepared,
  validatorUrl: null,
});
