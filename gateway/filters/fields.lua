-- Owns one refusal: a JSON body that has a field which its message has not. The transcoder would drop it in silence, and
-- a misspelt `expiresAt` would give credit that never expires.
--
-- The route says what there may be (gateway/request_fields.py): `root`, a message's name, and `messages`, for each
-- message its fields, by both their names, each with the name of its own message, or "" where any JSON may stand.
-- A field "*" is a map's: any key.
--
-- What is not JSON is refused too: the transcoder would take names without quotes and commas before a brace. What a value
-- must be stays the transcoder's to say.

local MAX_DEPTH = 64
-- Of a body's values, members' and elements' alike: reading them holds up every other call of the same thread. The most
-- that a call takes, ten thousand prices, has a third of it.
local MAX_VALUES = 1000000
local MAX_NAMED = 20

local walk

-- The members of an object whose brace is at `at`: the position after it, or nil.
local function members(json, at, fields, search, path, depth)
  at = json:find("%S", at + 1)
  if at and json:byte(at) == 125 then return at + 1 end
  while at do
    if json:byte(at) ~= 34 then return nil end
    local stop = string_end(json, at + 1)
    if stop == nil then return nil end
    local name = json:sub(at + 1, stop - 1)
    local below = fields and (fields[name] or fields["*"])
    if fields and below == nil and #search.unknown < MAX_NAMED then
      search.unknown[#search.unknown + 1] = path .. name
    end
    at = json:match("^%s*:%s*()", stop + 1)
    at = at and walk(json, at, below and search.messages[below], search, path .. name .. ".", depth + 1)
    at = at and json:find("%S", at)
    if at == nil then return nil end
    local byte = json:byte(at)
    if byte == 125 then return at + 1 end
    if byte ~= 44 then return nil end
    at = json:find("%S", at + 1)
  end
  return nil
end

-- The elements of an array whose bracket is at `at`: the position after it, or nil.
local function elements(json, at, fields, search, path, depth)
  at = json:find("%S", at + 1)
  if at and json:byte(at) == 93 then return at + 1 end
  while at do
    at = walk(json, at, fields, search, path, depth + 1)
    at = at and json:find("%S", at)
    if at == nil then return nil end
    local byte = json:byte(at)
    if byte == 93 then return at + 1 end
    if byte ~= 44 then return nil end
    at = json:find("%S", at + 1)
  end
  return nil
end

-- The value at `at`: the position after it, or nil where this is no JSON, or too deep or too much to say.
function walk(json, at, fields, search, path, depth)
  search.values = search.values + 1
  if depth > MAX_DEPTH or search.values > MAX_VALUES then return nil end
  local byte = json:byte(at)
  if byte == 123 then return members(json, at, fields, search, path, depth) end
  if byte == 91 then return elements(json, at, fields, search, path, depth) end
  if byte == 34 then
    local stop = string_end(json, at + 1)
    return stop and stop + 1
  end
  return json:match("^[%w%.%+%-]+()", at)
end

local function refuse(handle, message, violations)
  -- Tells gateway/refusals.py that these words are whole.
  handle:headers():replace("x-tollkeeper-refused", "true")
  handle:respond(
    {
      [":status"] = "400",
      ["content-type"] = "application/json",
      ["x-request-id"] = handle:headers():get("x-request-id") or "",
    },
    '{"code":3,"message":"' .. message .. '","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo",'
      .. '"reason":"INVALID_REQUEST","domain":"tollkeeper.gateway","metadata":{}}' .. violations .. "]}"
  )
end

local function refuse_unknown(handle, unknown)
  local violations = {}
  for number, field in ipairs(unknown) do
    -- Cut, since a name may be as long as the body; as it stood there it is still escaped, so escaped once more.
    local shown = escape(field:sub(1, 100))
    violations[number] = '{"field":"' .. shown .. '","description":"There is no such field."}'
  end
  refuse(
    handle,
    escape(unknown[1]:sub(1, 100)) .. ": there is no such field",
    ',{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":[' .. table.concat(violations, ",") .. "]}"
  )
end

function envoy_on_request(handle)
  -- Before the body is waited for: after that what was had from `handle` is no longer valid.
  local context = handle:filterContext()
  local root, messages = context:get("root"), context:get("messages")
  local body = handle:body()
  if body == nil or body:length() == 0 then return end
  local json = body:getBytes(0, body:length())
  local search = { messages = messages, unknown = {}, values = 0 }
  local start = json:find("%S")
  local stop = start and walk(json, start, messages[root], search, "", 0)
  if search.values > MAX_VALUES then
    refuse(handle, "The body has more than " .. MAX_VALUES .. " values.", "")
  elseif stop == nil or json:find("%S", stop) then
    refuse(handle, "The body is not JSON, or too deep.", "")
  elseif #search.unknown > 0 then
    refuse_unknown(handle, search.unknown)
  end
end
