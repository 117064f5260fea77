// Passkeys, recovery codes to keep, and codes behind the # of a link. Forms say what they are by data attributes.
(() => {
  const options = () => JSON.parse(document.getElementById("passkey-options").textContent);

  const say = (form, text) => {
    const note = form.querySelector("[data-passkey-note]");
    note.textContent = text;
    note.hidden = false;
  };

  // Browsers know passkeys for host names only, and away from localhost over TLS alone.
  const isPossible = () => "PublicKeyCredential" in window && !/^[\d.]+$|^\[/.test(location.hostname);

  const credentialFor = {
    "sign-in": async (form) => {
      const answer = await fetch(form.action, { headers: { Accept: "application/json" } });
      if (!answer.ok) throw new Error("The panel did not answer.");
      return window.webauthnJSON.get((await answer.json()).request_options);
    },
    use: () => window.webauthnJSON.get(options().request_options),
    add: (form) => {
      const creation = options().creation_options;
      const chosen = creation.publicKey.authenticatorSelection;
      const alone = form.elements.passwordless.checked;
      chosen.residentKey = alone ? "required" : "discouraged";
      chosen.requireResidentKey = alone;
      chosen.userVerification = alone ? "required" : "preferred";
      return window.webauthnJSON.create(creation);
    },
  };

  const submitWithPasskey = async (event) => {
    const form = event.target;
    event.preventDefault();
    try {
      form.elements.credential.value = JSON.stringify(await credentialFor[form.dataset.passkey](form));
      form.submit();
    } catch (error) {
      const isCalledOff = error.name === "NotAllowedError" || error.name === "AbortError";
      say(form, isCalledOff ? "That was called off. Try again." : `That did not work: ${error.message}`);
    }
  };

  for (const form of document.querySelectorAll("form[data-passkey]")) {
    if (isPossible()) {
      form.addEventListener("submit", submitWithPasskey);
    } else {
      form.querySelector("[type=submit]").disabled = true;
      say(form, "Passkeys need this page by a host name: over TLS, or as localhost.");
    }
  }

  for (const button of document.querySelectorAll("[data-save]")) {
    button.addEventListener("click", () => {
      const text = document.querySelector(button.dataset.save).textContent;
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "text/plain" }));
      link.download = button.dataset.saveAs;
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }

  // The code of an invitation or a new password stands behind the # of its link, which no browser sends, no log holds.
  const code = document.querySelector("[data-code]");
  if (code && location.hash.length > 1) {
    code.value = decodeURIComponent(location.hash.slice(1));
    history.replaceState(null, "", location.pathname);
    code.form.requestSubmit();
  }
})();
