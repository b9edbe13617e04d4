-- Owns what the scripts share of how text is written, in JSON and in a query. gateway/http_filters.py puts it before each
-- of them, since Envoy's Lua has no `require` of its own files.

-- The end of the JSON string whose first character after the quote is at `start`: the position of its closing quote.
local function string_end(json, start)
  local at = start
  while true do
    at = json:find('["\\]', at)
    if at == nil then return nil end
    if json:byte(at) == 34 then return at end
    at = at + 2
  end
end

-- `text` as it may stand in a JSON string.
local function escape(text)
  return (text:gsub('[%c"\\\127]', function(character)
    return string.format("\\u%04x", character:byte())
  end))
end

-- A query's `text` without its percent signs.
local function unescape(text)
  return (text:gsub("%%(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end))
end
