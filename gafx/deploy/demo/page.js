() => {
  if (window.gafxAnswered) return;
  const limit = $LIMIT, sentences = $SENTENCES;
  const show = (visible) => { document.querySelector('#gafx-answer').style.display = visible ? '' : 'none'; };
  // What was said of another file goes; the next answer shows itself.
  const note = (text) => {
    document.getElementById('gafx-note').textContent = text;
    show(false);
  };
  const size = (n) => words(n) === words(limit) ? n.toLocaleString('en-US') + ' bytes' : words(n);
  const words = (n) => n < 2 ** 20 ? n.toLocaleString('en-US') + ' bytes'
    : n < 2 ** 30 ? +(n / 2 ** 20).toPrecision(4) + ' MB' : +(n / 2 ** 30).toPrecision(3) + ' GB';
  const fill = (text, file, more) => text.replace('{name}', () => file.name).replace('{size}', () => size(file.size))
    .replace('{more}', () => more);
  const wrong = (files) => {
    const file = files[0];
    if (files.length > 1) return fill(sentences.many, file, files.length - 1);
    if (file.size > limit) return fill(sentences.large, file);
    if (!file.size) return fill(sentences.empty, file);
    if (!/^audio\//.test(file.type)) return fill(sentences.wrong, file);
    return '';
  };
  let url = null;
  const look = (event, files) => {
    if (!files || !files.length || !event.target.closest || !event.target.closest('#gafx-audio')) return;
    const said = wrong(files);
    note(said ? said + '.' : '');
    if (url) URL.revokeObjectURL(url);
    url = said ? null : URL.createObjectURL(files[0]);
    if (!said) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.target.matches('input')) event.target.value = '';
  };
  document.addEventListener('change', (e) => e.target.matches('input[type=file]') && look(e, e.target.files), true);
  document.addEventListener('drop', (e) => look(e, e.dataTransfer && e.dataTransfer.files), true);
  // A file dropped beside the field must not make the browser leave the page.
  for (const kind of ['dragover', 'drop']) document.addEventListener(kind, (e) => e.preventDefault());
  document.addEventListener('click', (e) => {
    if (e.target.closest && e.target.closest('#gafx-audio .record-button, #gafx-audio .record')) {
      note('');
      if (url) URL.revokeObjectURL(url);
      url = null;
    }
  }, true);
  window.gafxAnswered = () => {
    show(true);
    const player = document.querySelector('#gafx-answer .gafx-player');
    if (!player || !url) return;
    player.src = url;
    player.hidden = false;
  };
}
