-- Owns one refusal: a query that names a field which the path or the body names. The transcoder would let it win, so that
-- who reads the path, a log or a proxy before this one, would read another request than the service does.
--
-- The route says in `taken` which fields those are, each without `_` and in small letters; nothing where they are all, and
-- so the call takes no query. A route that path and body name nothing of does not switch it on.

local function refuse(handle, message)
  local headers = handle:headers()
  local request_id = headers:get("x-request-id") or ""
  -- Tells gateway/refusals.py that these words are whole.
  headers:replace("x-tollkeeper-refused", "true")
  handle:respond(
    { [":status"] = "400", ["content-type"] = "application/json", ["x-request-id"] = request_id },
    '{"code":3,"message":"' .. message .. '","details":['
      .. '{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"INVALID_REQUEST","domain":"tollkeeper.gateway",'
      .. '"metadata":{}}]}'
  )
end

function envoy_on_request(handle)
  local query = handle:headers():get(":path"):match("%?(.*)$")
  if query == nil then return end
  local taken = handle:filterContext():get("taken")
  if taken == nil then
    return refuse(handle, "query: this call takes none; give the fields in the path and the body")
  end
  for parameter in query:gmatch("[^&]+") do
    -- Of a field's field, the field; and either spelling, as the transcoder reads them.
    local name = unescape(parameter:match("^[^=]*")):match("^[^%.]*")
    if taken[(name:gsub("_", ""):lower())] then
      return refuse(handle, escape(name) .. ": stands in the path or the body, so not in the query")
    end
  end
end
