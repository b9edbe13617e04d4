-- Owns the key in a query, as Google's own documentation writes it (`?key=…`): it is taken out before anything can log it
-- or pass it on, and is the call's `x-goog-api-key` where there is no other.

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path")
  local before, query = path:match("^([^?]*)%?(.*)$")
  if query == nil or not query:find("key=", 1, true) then return end
  local kept, key = {}, nil
  for parameter in query:gmatch("[^&]+") do
    local value = parameter:match("^key=(.*)$")
    if value then
      key = key or unescape(value)
    else
      kept[#kept + 1] = parameter
    end
  end
  if key == nil then return end
  headers:replace(":path", #kept > 0 and before .. "?" .. table.concat(kept, "&") or before)
  -- What is no header's value can be no key either.
  if headers:get("x-goog-api-key") == nil and key:find("^[%w%-_%.~]+$") then
    headers:replace("x-goog-api-key", key)
  end
end
