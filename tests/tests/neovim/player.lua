-- Plays a user of Neovim and writes down what that user sees.
--
-- Run by `nvim --clean --headless -l player.lua NVIM INIT FILE TRANSCRIPT`. It starts a second Neovim
-- (NVIM, with INIT as the user's init.lua and FILE open), presses keys in it over RPC, and
-- writes its observations to TRANSCRIPT as JSON; the test in neovim.rs judges them. A wait
-- that ends without its event is an observation too: the field is then missing.

local nvim, init, file, transcript = unpack(_G.arg)
local seen = {}

-- How long to wait for something that should happen. Generous: it bounds a hang, it measures nothing.
local PATIENCE_MS = 60000

local child = vim.fn.jobstart({ nvim, '--embed', '--headless', '-n', '-i', 'NONE', '-u', init, file }, { rpc = true })
assert(child > 0, 'cannot start ' .. nvim)

local function request(method, ...)
  -- A Neovim that waits for a key would block every request but this one.
  local mode = vim.fn.rpcrequest(child, 'nvim_get_mode')
  if mode.blocking and method ~= 'nvim_input' then
    error('Neovim waits for a key in mode ' .. mode.mode .. ' and cannot answer ' .. method)
  end
  return vim.fn.rpcrequest(child, method, ...)
end

local function lua(code, ...)
  return request('nvim_exec_lua', code, { ... })
end

local function press(keys)
  request('nvim_input', keys)
end

-- Polls `probe` until it returns something; returns that, or nil after `ms`.
local function await(probe, ms)
  local found
  vim.wait(ms or PATIENCE_MS, function()
    found = probe()
    return found ~= nil and found ~= false
  end, 20)
  return found or nil
end

local function buffer()
  return request('nvim_buf_get_lines', 0, 0, -1, false)
end

local function screen()
  return lua([[
    vim.cmd.redraw()
    local rows = {}
    for row = 1, vim.o.lines do
      local cells = {}
      for column = 1, vim.o.columns do
        cells[column] = vim.fn.screenstring(row, column)
      end
      rows[row] = (table.concat(cells):gsub('%s+$', ''))
    end
    return rows
  ]])
end

-- The ghost text on display, its lines joined; nil when there is none.
local function ghost()
  return await(function()
    local text = lua([[
      local namespace = vim.api.nvim_get_namespaces()['nvim.lsp.inline_completion']
      local mark = namespace and vim.api.nvim_buf_get_extmarks(0, namespace, 0, -1, { details = true })[1]
      if not mark then return '' end
      local function chunks(line)
        return table.concat(vim.tbl_map(function(chunk) return chunk[1] end, line))
      end
      local lines = { chunks(mark[4].virt_text or {}) }
      for _, line in ipairs(mark[4].virt_lines or {}) do table.insert(lines, chunks(line)) end
      return table.concat(lines, '\n')
    ]])
    return text ~= '' and text
  end, 3000)
end

-- Types `text` on a new line below the line that reads `below`, and waits for ghost text. A model that
-- is still loading suggests nothing, so the user leaves insert mode and comes back.
local function type_and_see(below, text)
  lua('vim.fn.search([=[\\V]=] .. ..., "cw")', below)
  press('o')
  for character in text:gmatch('.') do
    press(character == '<' and '<lt>' or character)
  end
  local shown = ghost()
  local left = PATIENCE_MS
  while not shown and left > 0 do
    press('<Esc>')
    await(function() return request('nvim_get_mode').mode == 'n' end)
    press('A')
    shown = ghost()
    left = left - 3000
  end
  return { ghost = shown, before = buffer(), caret = request('nvim_win_get_cursor', 0), screen = screen() }
end

-- The buffer once it stays as it is: accepting is scheduled behind the keys themselves.
local function settled()
  local last
  await(function()
    local now = buffer()
    local same = vim.deep_equal(now, last)
    last = now
    return same
  end)
  return last
end

local function leave_insert()
  press('<Esc>')
  await(function() return request('nvim_get_mode').mode == 'n' end)
end

-- Presses `keys` and records the buffer once it is no longer `before`.
local function accept(sight, keys)
  press(keys)
  await(function() return not vim.deep_equal(buffer(), sight.before) end)
  sight.after = settled()
  leave_insert()
end

local function play()
  seen.version = lua('return tostring(vim.version())')
  seen.attached = await(function()
    return lua([[
      local client = vim.lsp.get_clients({ name = 'redstart', bufnr = 0 })[1]
      return client ~= nil and client.initialized
    ]])
  end)
  if not seen.attached then
    return
  end
  seen.encoding = lua([[return vim.lsp.get_clients({ name = 'redstart' })[1].offset_encoding]])
  -- What the editor tells its user, and the menu of code actions, are kept instead of shown.
  lua([[
    _G.told, _G.menu = {}, nil
    vim.notify = function(message) table.insert(_G.told, message) end
    vim.ui.select = function(items, opts, choose)
      _G.menu = vim.tbl_map(opts.format_item or tostring, items)
      for index, title in ipairs(_G.menu) do
        if vim.startswith(title, 'Review this function') then return choose(items[index], index) end
      end
    end
  ]])

  -- Ghost text, accepted with <Tab>.
  seen.accepted = type_and_see('self.owner = owner', 'self.bal')
  if seen.accepted.ghost then
    accept(seen.accepted, '<Tab>')
  end

  -- The same, but the user types the first character of the ghost text and at once <Tab>.
  lua('vim.cmd.undo(0)')
  seen.typed_through = type_and_see('self.owner = owner', 'self.bal')
  if seen.typed_through.ghost then
    local first = vim.fn.strcharpart(seen.typed_through.ghost, 0, 1):gsub('<', '<lt>')
    accept(seen.typed_through, first .. '<Tab>')
  end

  -- Half of the first line typed in one go; Neovim drops its ghost text and asks again. What it shows then must be
  -- the other half, and accepting that must double nothing.
  lua('vim.cmd.undo(0)')
  seen.typed_half = type_and_see('self.owner = owner', 'self.bal')
  if seen.typed_half.ghost then
    local line = seen.typed_half.ghost:match('^[^\n]*')
    local half = vim.fn.strcharpart(line, 0, math.max(1, math.floor(vim.fn.strchars(line) / 2)))
    press((half:gsub('<', '<lt>')))
    await(function() return #table.concat(buffer(), '\n') == #table.concat(seen.typed_half.before, '\n') + #half end)
    seen.rest = ghost()
    seen.typed_half.half = half
    seen.halfway = buffer()
    if seen.rest then
      press('<Tab>')
      await(function() return not vim.deep_equal(buffer(), seen.halfway) end)
    end
    seen.typed_half.after = settled()
    leave_insert()
  end

  -- The whole first line typed as fast as keys can be pressed, over and through the ghost text.
  lua('vim.cmd.undo(0)')
  seen.typed_out = type_and_see('self.owner = owner', 'self.bal')
  if seen.typed_out.ghost then
    for character in seen.typed_out.ghost:match('^[^\n]*'):gmatch('[%z\1-\127\194-\244][\128-\191]*') do
      press(character == '<' and '<lt>' or character)
    end
    await(function() return not vim.deep_equal(buffer(), seen.typed_out.before) end)
    seen.typed_out.after = settled()
    leave_insert()
  end

  -- A code action, by Neovim's own key for it.
  lua('vim.fn.search([=[\\Vreturn self.balance]=], "cw")')
  press('gra')
  seen.menu = await(function() return lua('return _G.menu or false') end)
  seen.told = await(function()
    local told = lua('return _G.told')
    return #told > 0 and told
  end, 5000)

  -- Where there is no suggestion, <Tab> is a tab.
  press(':enew!<CR>i<Tab>x<Esc>')
  seen.plain_tab = await(function()
    local text = buffer()[1]
    return text ~= '' and text
  end)
end

local played, trouble = xpcall(play, debug.traceback)
seen.trouble = not played and trouble or nil

-- Leaving the editor ends the server.
local pid = vim.fn.jobpid(child)
local family = vim.api.nvim_get_proc_children(pid)
vim.fn.rpcnotify(child, 'nvim_command', 'qall!')
seen.exit = vim.fn.jobwait({ child }, PATIENCE_MS)[1]
seen.servers = #family
seen.all_gone = await(function()
  return vim.iter(family):all(function(process) return vim.api.nvim_get_proc(process) == nil end)
end, 20000)
vim.fn.writefile({ vim.json.encode(seen) }, transcript)
